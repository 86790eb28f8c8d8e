"""The model's parts against the PyTorch originals."""
