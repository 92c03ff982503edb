"""Ranks variants under many controls, after section 5.1 of the Stable Diffusion 3 paper. No JAX here."""
