"""From clips to packed batches."""
