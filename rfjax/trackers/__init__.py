"""Shows a run's curve in trackers: TensorBoard, Weights & Biases, MLflow.

`table.TRACKERS` has the names that `config.train.trackers` may list, and `follow` feeds the trackers while runs train.
A tracker is fed from the files in the run's folder, so the training code does not depend on any tracker.
"""

from rfjax.trackers.feeding import follow

__all__ = ["follow"]
