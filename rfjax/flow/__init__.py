"""What is learnt, and where the noise is spent: paths, predictions, densities of t, weights, samplers."""
