"""Predicts what a study takes on hardware that is not at hand: memory, step time, days, chip-hours."""
