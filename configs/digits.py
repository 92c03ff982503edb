"""The default study on real handwriting: scikit-learn's 1,797 scans, coloured and placed.

Scans of the training and the validation split are kept apart; scenes are 20x20, where a scan is
drawn without resampling. Everything else is as in `shapes`, which is read from beside this file.
"""

from pathlib import Path

from rfjax.config import load_file

shapes = load_file(Path(__file__).with_name("shapes.py"))
points = shapes.points


def get_config():
    config = shapes.get_config()
    config.name = "digits"
    config.data = {"corpus": "digits", "image_size": 20}
    config.model.update({"position_tokens": 5, "position_span": 5.0, "position_grid": 15})  # 20 / 4 a side
    return config
