"""Models from outside become Graphs."""
