"""Makes a prepared corpus: the images and captions of a source become shards of latents and text features."""
