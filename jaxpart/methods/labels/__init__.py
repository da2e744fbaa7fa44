"""Search over chip labels, made valid on the device: projection, sampling, two baselines."""
