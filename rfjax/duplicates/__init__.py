"""Near-duplicates of a source: a descriptor of every image, clusters of them, and Esser et al. 2024's greedy
removal."""
