"""The default study on real handwriting: scikit-learn's 1,797 scans, coloured and placed.

Training and validation draw different scans; scenes are 20x20, where a scan needs no resampling.
Everything else is as in `shapes`, the config that ships with rfjax.
"""

from rfjax.config_files import load_file

shapes = load_file("shapes")
points = shapes.points

# The sizes of each embedded corpus: a scene's side in pixels, and in tokens of 4x4 pixels.
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
