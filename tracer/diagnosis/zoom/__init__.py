"""Inside one module: which operation makes the first wrong value."""
