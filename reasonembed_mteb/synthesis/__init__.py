"""ReMixer: reasoning-intensive training data from a corpus and any OpenAI-compatible endpoint."""
