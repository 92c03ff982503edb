"""Do learning rates transfer over width and depth? A study of sweeps on `shapes`, for all three parametrisations.

    rfjax study --config analysis/rates_transfer.py --workdir DIR

Each sweep has five rates, a factor of 2 apart, and two seeds. Under standard the sweeps of narrow networks have two
more rates, because their best rates are higher. At depth 2, widths 64, 128 and 256 are swept under standard, mup and
completep, and width 512 under mup at four rates. At width 128, depths 1 and 4 are swept, too. A second backbone and
Muon are swept at two widths under mup. The rates of a size train as one program. The environment variables
`TRANSFER_STEPS` and `TRANSFER_WIDTHS` make the study smaller for a test.
"""

import os

from rfjax.config_files import load_file

shapes = load_file("shapes")
STEPS = int(os.environ.get("TRANSFER_STEPS", "400"))
WIDTHS = tuple(map(int, os.environ.get("TRANSFER_WIDTHS", "64,128,256").split(",")))
WIDEST = 512
SEEDS = (0, 1)
BASE = {"model.base_width": 64}
NAMES = {
    "standard": {},
    "mup": {"model.parametrization": "mup", **BASE},
    "completep": {"model.parametrization": "completep", "model.base_depth": 1, **BASE},
}
# log2 of the rates. Under mup the rate is that of hidden kernels at width 64, which is four times the rate of inputs.
POWERS = {"standard": range(-11, -4), "mup": range(-9, -4), "completep": range(-9, -4), "muon": range(-8, -3)}


def get_config():
    config = shapes.get_config()
    config.name = "rates-transfer"
    config.model.update({"depth": 2, "hidden": 64})
    settings = {"role": "sweep", "together": 5, "steps": STEPS, "warmup_steps": STEPS // 10, "schedule": "cosine"}
    del config.train.decay_fraction, config.train.decay_shape  # which the cosine schedule does not read
    config.train.update(settings | {"checkpoint_every": STEPS, "log_every": max(1, STEPS // 10)})
    config.evaluation.update({"weights": ("raw",)})
    config.evaluation.geneval.update({"prompts_per_task": 0, "weights": ("raw",)})
    return config


def cells():
    """(name, overrides, log2 rates) of each size under each setting."""
    for name, changes in NAMES.items():
        for width in WIDTHS:
            powers = range(-11, -6) if (name, width) == ("standard", 256) else POWERS[name]
            yield f"{name}-w{width}", changes | {"model.hidden": width}, powers
        for depth in (1, 4):
            more = {"model.hidden": WIDTHS[min(1, len(WIDTHS) - 1)], "model.depth": depth}
            yield f"{name}-d{depth}", changes | more, POWERS[name]
    if WIDTHS[-1] == 256:
        yield f"mup-w{WIDEST}", NAMES["mup"] | {"model.hidden": WIDEST}, range(-8, -4)
    for width in (WIDTHS[0], WIDTHS[-1]):
        yield f"mup-dit-w{width}", NAMES["mup"] | {"model.backbone": "dit", "model.hidden": width}, POWERS["mup"]
        yield f"mup-muon-w{width}", NAMES["mup"] | {"train.optimizer": "muon", "model.hidden": width}, POWERS["muon"]


def points():
    return {
        f"{name}-rate{-power}-seed{seed}": changes | {"train.learning_rate": 2.0**power, "seed": seed}
        for name, changes, powers in cells()
        for seed in SEEDS
        for power in powers
    }
