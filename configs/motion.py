"""Clips in which one object moves: four depths of video models, in about an hour on two CPU cores.

Each depth is a trunk of constant rate with a branch of each length. One attention covers the text and the tokens of all
frames. Depth 2 has lengths of 1, 4 and 32 parts, for the same prompts at compute C, 4C and 32C. Strict scores of so
small models stay low; the soft measures beside them rise first (docs/motion.md).
"""

from ml_collections import ConfigDict

# depth -> (learning rate, lengths of the branches in steps)
TRUNKS = {
    1: (4e-3, (500, 1000, 2000, 4000)),
    2: (3e-3, (250, 1000, 2000, 4000, 8000)),
    3: (2.5e-3, (2000, 4000)),
    4: (2e-3, (2000, 4000)),
}


def get_config():
    return ConfigDict(
        {
            "name": "motion",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {  # without a point: the largest
                "depth": 4,
                "hidden": 192,
                "head_size": 32,
                "patch_size": 4,
                "temporal_patch_size": 1,
                "temporal_attention": "joint",
                "position_tokens": 4,
                "position_span": 4.0,
                "position_grid": 16,
            },
            "data": {"corpus": "motion", "world": "first", "frames": 4, "image_size": 16},
            "train": {
                "steps": 4000,
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
                "weights": ("ema",),
                "sampler": {"method": "euler", "steps": 20, "guidance_scale": 4.0},
                "validation": {"examples": 512, "batch_size": 128},
                "geneval": {"prompts_per_task": 0},
                "temporal": {"prompts_per_task": 40, "clips_per_prompt": 4, "batch_size": 120},
            },
        }
    )


def points():
    return {
        f"depth{depth}": {
            "model.depth": depth,
            "model.hidden": 64 + 32 * depth,
            "train.learning_rate": rate,
            "train.steps": lengths[-1],
            "train.branches": lengths,
        }
        for depth, (rate, lengths) in TRUNKS.items()
    }
