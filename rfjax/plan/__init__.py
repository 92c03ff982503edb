"""Predicts what a study takes on hardware that is not there: memory, step time, days, chip-hours."""
