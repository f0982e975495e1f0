"""Who computes vectors in place of the loaded model: vLLM in this process, or a server."""
