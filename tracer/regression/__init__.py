"""Comparisons checked against a baseline and against limits."""
