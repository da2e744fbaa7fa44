"""Importers: they turn models and graph files of other formats into graphs."""
