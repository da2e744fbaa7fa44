"""Searches a graph whose large operations are split, beside the graph as it is."""
