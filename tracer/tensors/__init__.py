"""Tensors in nested values, and the measures between two of them."""
