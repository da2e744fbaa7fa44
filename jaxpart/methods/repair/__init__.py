"""SCIP in the background of a search: repairs and improvements."""
