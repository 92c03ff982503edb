"""Which formulation learns best: SD3's 61 (section 5.1), on both embedded corpora, all else held fixed.

Every variant starts from the same weights and sees the same batches and the same noise; what differs is
what it predicts, on which path, and where along t it spends its effort. Up to 16 are trained in one
program. Each is then sampled under six samplers, with its average and its raw weights.
"""

from ml_collections import ConfigDict

from rfjax.flow.formulation import PAPER

# by corpus: what goes with a side of 16 and of 20 pixels, in tokens of 4x4
CORPORA = {
    "shapes": {"data.image_size": 16, "model.position_tokens": 4, "model.position_span": 4.0, "model.position_grid": 16},
    "digits": {"data.image_size": 20, "model.position_tokens": 5, "model.position_span": 5.0, "model.position_grid": 15},
}
IN_A_FOLDERS_NAME = str.maketrans({"/": "_", "(": "_", ",": "_", ")": None})


def get_config():
    return ConfigDict(
        {
            "name": "formulations",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {
                "depth": 2,
                "hidden": 96,
                "head_size": 32,
                "patch_size": 4,
                "position_tokens": 4,
                "position_span": 4.0,
                "position_grid": 16,
            },
            "data": {"corpus": "shapes", "image_size": 16},
            "train": {
                "together": 16,
                "steps": 1000,
                "learning_rate": 3e-3,
                "batch_size": 32,
                "schedule": "wsd",
                "warmup_steps": 100,
                "decay_fraction": 0.3,
                "b2": 0.99,
                "weight_decay": 0.0,
                "condition_dropout": 0.1,
                "ema_decay": 0.99,
                "ema_every": 1,
                "checkpoint_every": 500,
                "log_every": 50,
            },
            "evaluation": {
                "validation": {"examples": 256, "batch_size": 128},
                "geneval": {"prompts_per_task": 0},
                "ranking": {"prompts_per_task": 24, "images_per_prompt": 1, "batch_size": 144},
            },
        }
    )


def points():
    return {
        f"{corpus}-{name.translate(IN_A_FOLDERS_NAME)}": {"formulation": name, "data.corpus": corpus} | sizes
        for corpus, sizes in CORPORA.items()
        for name in PAPER
    }
