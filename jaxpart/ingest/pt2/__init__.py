"""Import of programs that `torch.export` saved (`.pt2`), without torch."""
