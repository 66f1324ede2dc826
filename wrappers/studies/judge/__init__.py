"""What the results of a study show, and how sure that is."""
