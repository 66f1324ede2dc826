"""What a further run changes: values and parameters of the reference in the candidate."""
