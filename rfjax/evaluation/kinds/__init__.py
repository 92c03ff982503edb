"""What is measured of a checkpoint, a module each: when it is `due`, what to `check` before training, and `measure`."""
