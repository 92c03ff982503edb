"""`rfjax bench`: measures the speed of a config's training step on the devices here."""
