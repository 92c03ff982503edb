"""`rfjax bench`: the speed of a config's training step on the devices that are here."""
