"""Runs models: hooks, pairing, two models in lockstep, and their state put back."""
