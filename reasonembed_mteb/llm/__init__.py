"""Generation over endpoints: prompts, budget, cache, batches."""
