"""Samples images from a run, as one picture or as a folder that scorers read."""
