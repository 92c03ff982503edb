"""Trackers show a run's curve elsewhere: TensorBoard, Weights & Biases, MLflow.

A tracker reads the run's folder and nothing else, so training knows none. `table.TRACKERS` has the names that
`config.train.trackers` may list, and `follow` feeds them while runs train.
"""

from rfjax.trackers.feeding import follow

__all__ = ["follow"]
