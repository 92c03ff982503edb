"""Measuring a run: paired validation loss, samples, GenEval, and the records that keep what was found."""
