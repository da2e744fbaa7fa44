"""The graph-attention policy: network, rollouts, training, search."""
