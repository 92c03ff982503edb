"""Exports checkpoints to PyTorch and imports them from it; a layout is a table of names."""
