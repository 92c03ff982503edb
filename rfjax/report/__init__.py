"""The report: one HTML page, its figures, and a JSON of every number, made from a results folder."""
