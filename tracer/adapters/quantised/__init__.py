"""Models that others quantised: which tensors, how to leave one out, and what is silently wrong."""
