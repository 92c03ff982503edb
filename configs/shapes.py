"""The default study: four depths on procedurally drawn shapes, in minutes on two CPU cores.

Each depth has a trunk of constant rate with a branch of each length; the smallest depth has two trunks with two seeds,
so that the noise between trunks is known. A 4x4 patch holds 48 numbers, so the width starts well above that (a network
narrower than its patch cannot carry the noise): 64 + 32 depth.
"""

from ml_collections import ConfigDict

# depth -> (learning rate, lengths of the branches in steps, seeds)
TRUNKS = {
    1: (4e-3, (500, 1000, 2000, 4000), (0, 1)),
    2: (3e-3, (500, 1000, 2000), (0,)),
    3: (2.5e-3, (1000, 2000), (0,)),
    4: (2e-3, (1000, 2000), (0,)),
}


def get_config():
    return ConfigDict(
        {
            "name": "shapes",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {  # the largest size; each point sets its own
                "depth": 4,
                "hidden": 192,
                "head_size": 32,
                "patch_size": 4,
                "position_tokens": 4,
                "position_span": 4.0,
                "position_grid": 16,
            },
            "data": {"corpus": "shapes", "image_size": 16},
            "train": {
                "steps": 2000,
                "learning_rate": 2e-3,
                "batch_size": 32,
                "schedule": "wsd",
                "warmup_steps": 100,
                "decay_fraction": 0.2,
                "decay_shape": "1-sqrt",
                "b2": 0.99,
                "weight_decay": 0.0,
                "condition_dropout": 0.1,
                "ema_decay": 0.95,
                "ema_every": 1,
                "checkpoint_every": 1000,
                "log_every": 100,
            },
            "evaluation": {
                "sampler": {"method": "euler", "steps": 20, "guidance_scale": 4.0},
                "validation": {"examples": 512, "batch_size": 128},
                "geneval": {"prompts_per_task": 40, "images_per_prompt": 4, "batch_size": 120},
            },
        }
    )


def points(trunks=TRUNKS):
    return {
        f"depth{depth}-seed{seed}": {
            "model.depth": depth,
            "model.hidden": 64 + 32 * depth,
            "train.learning_rate": rate,
            "train.steps": lengths[-1],
            "train.branches": lengths,
            "evaluation.geneval.few_prompts_per_task": 10,
            "seed": seed,
        }
        for depth, (rate, lengths, seeds) in trunks.items()
        for seed in seeds
    }
