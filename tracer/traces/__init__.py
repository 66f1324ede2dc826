"""Traces on disk: recorded, read again, and taken for a side of a comparison."""
