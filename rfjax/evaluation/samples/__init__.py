"""Samples images or clips from a run, as one file, or images as a folder that scorers read."""
