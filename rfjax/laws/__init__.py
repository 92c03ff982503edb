"""Scaling laws: fitting them, their intervals and held-out errors, budgets, and score from loss. No JAX here."""
