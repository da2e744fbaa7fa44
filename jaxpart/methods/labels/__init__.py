"""Chip labels made valid on the device: projection, sampling, the paper's two baselines."""
