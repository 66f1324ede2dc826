"""Wrappers for Llama."""
