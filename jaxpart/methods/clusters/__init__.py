"""Partitions grown as quotient graphs: chips side by side where the graph branches."""
