"""From recordings to prepared data sets: sources, checks, codec tokens, shards."""
