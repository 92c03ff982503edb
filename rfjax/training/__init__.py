"""Training a run on a mesh: state, step, loop, checkpoints."""
