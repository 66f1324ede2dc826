"""What a study reports: tables, plots and sentences, and how they are written."""
