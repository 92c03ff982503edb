"""A study of human preference without a server: one page for each rater, and a key that stays with the researcher."""
