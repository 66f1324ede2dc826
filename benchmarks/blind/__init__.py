"""A blind test of the verdict: mistakes and right rewrites that are made by rule, not by hand."""
