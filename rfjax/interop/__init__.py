"""Export of checkpoints to PyTorch and import from it; layouts are tables of names."""
