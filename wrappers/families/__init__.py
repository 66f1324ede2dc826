"""The model families; each states only its difference."""
