"""Tunes a trained run on a preference: trains an adapter on images that the run itself samples and a reward rates."""
