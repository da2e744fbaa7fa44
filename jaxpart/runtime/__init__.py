"""How a search runs: its state and budget, worker processes, islands, interrupts."""
