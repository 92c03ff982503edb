"""Shapes for about an hour on one GPU: the paper's family, hidden = 64 depth, heads = depth.

Two learning rates per depth, so that the report can say whether the optimum is at the grid's
edge. The hour is reckoned, not measured: 3.1e17 FLOPs at 100 TFLOP/s of bfloat16.
"""

from ml_collections import ConfigDict

DEPTHS = (2, 4, 6, 8, 12)
RATES = (3e-4, 1e-3)


def get_config():
    return ConfigDict(
        {
            "name": "shapes_full",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {  # the smallest size; each point sets its own
                "depth": 2,
                "patch_size": 2,
                "position_tokens": 8,
                "position_span": 8.0,
                "position_grid": 32,
                "qk_norm": True,
            },
            "data": {"corpus": "shapes", "image_size": 16},
            "train": {
                "steps": 10_000,
                "learning_rate": 1e-3,
                "batch_size": 256,
                "compute_dtype": "bfloat16",
                "schedule": "wsd",
                "warmup_steps": 500,
                "decay_fraction": 0.2,
                "b2": 0.99,
                "condition_dropout": 0.1,
                "ema_decay": 0.999,
                "ema_every": 1,
                "checkpoint_every": 2000,
                "log_every": 100,
            },
            "evaluation": {
                "every": 2000,
                "sampler": {"method": "euler", "steps": 50, "guidance_scale": 4.0},
                "validation": {"examples": 4096, "batch_size": 512},
                "geneval": {"prompts_per_task": 100, "images_per_prompt": 4, "batch_size": 600},
            },
        }
    )


def points():
    return {
        f"depth{depth}-rate{rate:g}": {"model.depth": depth, "train.learning_rate": rate}
        for depth in DEPTHS
        for rate in RATES
    }
