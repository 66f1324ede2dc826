"""Comparisons in tests: an assertion, and a plugin for pytest."""
