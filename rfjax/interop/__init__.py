"""Checkpoints for PyTorch, and from there: layouts as tables of names, export, import."""
