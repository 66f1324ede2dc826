"""What others make of a model, read as a side of a comparison."""
