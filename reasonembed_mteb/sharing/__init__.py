"""What MTEB accepts: checking a submission, metadata of the checkpoints."""
