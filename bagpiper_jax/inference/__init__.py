"""Generation: sampling, KV-cache loop, pipeline."""
