"""Measuring a run: paired validation loss, samples, GenEval, rankings, and the records of what was measured."""
