"""Kernels: attention and the fused cross-entropy."""
