"""Preference tuning of a trained run: an adapter is trained on images that the run makes itself, judged by a reward."""
