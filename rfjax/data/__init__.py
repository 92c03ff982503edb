"""Corpora: what an example is, where it comes from, and how batches of it are read ahead."""
