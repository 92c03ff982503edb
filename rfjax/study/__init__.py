"""Runs a study: trains and measures its points, each alone or several together."""
