"""The report: one HTML page, its figures, and a JSON of every number, from a results folder alone."""
