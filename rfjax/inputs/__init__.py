"""Reads what a user gives: paths, folders, text files and JSON files, each in one way. No JAX here."""
