"""Clips of the world `full`, in about an hour on one GPU: four depths of the paper's family, hidden = 64 depth.

Eight frames, all ten tasks. Each depth is a trunk of constant rate with a branch of each length. The hour is reckoned,
not measured: training takes 2.5e17 FLOPs, 41 minutes at 100 TFLOP/s of bfloat16. At depth 4, the lengths 625, 2,500
and 20,000 show the same prompts at compute C, 4C and 32C.
"""

from ml_collections import ConfigDict

# depth -> (learning rate, lengths of the branches in steps)
TRUNKS = {
    2: (2e-3, (2500, 5000, 10_000, 20_000)),
    4: (1.4e-3, (625, 2500, 5000, 10_000, 20_000)),
    6: (1e-3, (2500, 5000, 10_000)),
    8: (8e-4, (2500, 5000, 10_000)),
}


def get_config():
    return ConfigDict(
        {
            "name": "motion_full",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {  # the smallest size; each point sets its own
                "depth": 2,
                "patch_size": 2,
                "temporal_patch_size": 1,
                "temporal_attention": "joint",
                "position_tokens": 8,
                "position_span": 8.0,
                "position_grid": 32,
                "qk_norm": True,
            },
            "data": {"corpus": "motion", "world": "full", "frames": 8, "image_size": 16},
            "train": {
                "steps": 10_000,
                "learning_rate": 1e-3,
                "batch_size": 128,
                "compute_dtype": "bfloat16",
                "schedule": "wsd",
                "warmup_steps": 250,
                "decay_fraction": 0.2,
                "decay_shape": "1-sqrt",
                "b2": 0.99,
                "condition_dropout": 0.1,
                "ema_decay": 0.99,
                "ema_every": 1,
                "checkpoint_every": 2500,
                "log_every": 100,
            },
            "evaluation": {
                "sampler": {"method": "euler", "steps": 50, "guidance_scale": 4.0},
                "validation": {"examples": 2048, "batch_size": 256},
                "geneval": {"prompts_per_task": 0},
                "temporal": {"prompts_per_task": 40, "clips_per_prompt": 4, "batch_size": 400},
            },
        }
    )


def points():
    return {
        f"depth{depth}": {
            "model.depth": depth,
            "train.learning_rate": rate,
            "train.steps": lengths[-1],
            "train.branches": lengths,
        }
        for depth, (rate, lengths) in TRUNKS.items()
    }
