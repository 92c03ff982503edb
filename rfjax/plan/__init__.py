"""What a study costs on hardware that is not there yet: memory, step time, days, chip-hours."""
