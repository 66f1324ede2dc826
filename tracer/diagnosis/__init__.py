"""Where a divergence begins, why, and the evidence for it."""
