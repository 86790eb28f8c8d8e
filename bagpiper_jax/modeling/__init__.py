"""The model, its configs and its codec."""
