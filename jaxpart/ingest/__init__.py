"""Models from outside become graphs."""
