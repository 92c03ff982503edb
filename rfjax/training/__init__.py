"""Trains a run on a mesh of devices: its state, step, loop and checkpoints."""
