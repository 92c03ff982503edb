"""Makes a study of human preference without a server: a page for each rater, and a key that the researcher keeps."""
