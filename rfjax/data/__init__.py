"""Corpora: what an example is, where it comes from, and how its batches are read ahead."""
