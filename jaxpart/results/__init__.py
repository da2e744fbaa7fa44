"""Results: figures, files, report, picture, progress."""
