"""The policy that transfers: a graph-attention network that proposes partitions of any graph."""
