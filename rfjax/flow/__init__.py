"""What a network learns, and at which noise levels: paths, predictions, densities of t, weights, samplers."""
