"""What a user hands in: paths, folders, text files and JSON files, each read in one way. No JAX here."""
