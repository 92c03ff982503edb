"""Measuring a run: paired validation loss, samples, GenEval, and the records of what was measured."""
