"""From a bucket of images and captions to shards that training reads. PyTorch is imported here alone, and late."""
