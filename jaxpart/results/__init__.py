"""Results: costs, files, report, picture and progress."""
