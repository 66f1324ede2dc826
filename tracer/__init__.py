"""Finds where two PyTorch models that should agree stop agreeing, and why."""
