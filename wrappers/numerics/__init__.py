"""Number formats: integers with a scale, and microscaling blocks."""
