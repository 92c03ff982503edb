"""Exports checkpoints to PyTorch, and imports PyTorch checkpoints; a layout is a table of names."""
