"""Temporal GenEval: whether a clip shows what its prompt says happens, by rules on any detector's boxes."""
