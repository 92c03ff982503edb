"""Exports checkpoints to PyTorch, and imports PyTorch checkpoints. Each layout of names is a table."""
