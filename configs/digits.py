"""The default study on real handwriting: scikit-learn's 1,797 scans, coloured and placed.

Scans of the training and the validation split are kept apart; scenes are 20x20, where a scan is
drawn without resampling. Everything else is as in `shapes`, which is read from beside this file.
"""

from pathlib import Path

from rfjax.config import load_file

shapes = load_file(Path(__file__).with_name("shapes.py"))
points = shapes.points

# What goes with each embedded corpus: the side of its scenes in pixels, and in tokens of 4x4.
CORPORA = {
    "shapes": {
        "data.image_size": 16,
        "model.position_tokens": 4,
        "model.position_span": 4.0,
        "model.position_grid": 16,
    },
    "digits": {
        "data.image_size": 20,
        "model.position_tokens": 5,
        "model.position_span": 5.0,
        "model.position_grid": 15,
    },
}


def get_config():
    config = shapes.get_config()
    config.name = "digits"
    config.update_from_flattened_dict({"data.corpus": "digits", **CORPORA["digits"]})
    return config
