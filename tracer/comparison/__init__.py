"""A comparison: both models run side by side, judged, and the result."""
