"""Node orders, cut into segments by dynamic programming, and evolution over orders."""
