"""The default study on real handwriting: scikit-learn's 1,797 scans, coloured and placed.

Scans of the training and the validation split are kept apart; scenes are 20x20, where a scan is
drawn without resampling. Everything else is as in `shapes`.
"""

from ml_collections import ConfigDict

# depth -> (learning rate, training steps of each run)
RUNS = {
    1: (4e-3, (1000, 2400)),
    2: (3e-3, (1400, 2800)),
    3: (2.5e-3, (2000,)),
    4: (2e-3, (2000,)),
}


def get_config():
    return ConfigDict(
        {
            "name": "digits",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {  # without a point: the largest
                "depth": 4,
                "hidden": 192,
                "head_size": 32,
                "patch_size": 4,
                "position_tokens": 5,
                "position_span": 5.0,
                "position_grid": 15,
            },
            "data": {"corpus": "digits", "image_size": 20},
            "train": {
                "steps": 2000,
                "learning_rate": 2e-3,
                "batch_size": 32,
                "schedule": "wsd",
                "warmup_steps": 200,
                "decay_fraction": 0.3,
                "b2": 0.99,
                "weight_decay": 0.0,
                "condition_dropout": 0.1,
                "ema_decay": 0.99,
                "ema_every": 1,
                "checkpoint_every": 1000,
                "log_every": 100,
            },
            "evaluation": {
                "every": 500,
                "sampler": {"method": "euler", "steps": 20, "guidance_scale": 4.0},
                "validation": {"examples": 512, "batch_size": 128},
                "geneval": {"prompts_per_task": 40, "images_per_prompt": 4, "batch_size": 120},
            },
        }
    )


def points():
    return {
        f"depth{depth}-steps{steps}": {
            "model.depth": depth,
            "model.hidden": 64 + 32 * depth,
            "train.learning_rate": rate,
            "train.steps": steps,
        }
        for depth, (rate, all_steps) in RUNS.items()
        for steps in all_steps
    }
