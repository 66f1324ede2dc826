"""Wrapper-based post-training quantisation."""
