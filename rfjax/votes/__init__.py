"""Turns the votes of a preference study into win rates, strengths and their intervals."""
