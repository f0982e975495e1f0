"""The embedding store: vectors kept by content, and the encoder that reads and fills it."""
