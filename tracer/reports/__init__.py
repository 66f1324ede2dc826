"""Reports: each a pure function of a Comparison."""
