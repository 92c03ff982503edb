"""Finds near-duplicate images: descriptors of all images, clusters, and the greedy removal of Esser et al. 2024."""
