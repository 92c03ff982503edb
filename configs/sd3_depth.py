"""The paper's own sweep (SD3 section 5.3.3): depths 15 to 38 at 256^2, 500k steps of 4096 images.

It needs a pod; `rfjax study --config=configs/sd3_depth.py --dry-run` lists what it costs.
Learning rate, time density and average are the paper's stated defaults; the schedule of the
scaling runs is not published (constant after 1,000 steps of warm-up is assumed).
"""

from ml_collections import ConfigDict

DEPTHS = (15, 18, 21, 30, 38)


def get_config():
    return ConfigDict(
        {
            "name": "sd3_depth",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {"patch_size": 2, "position_tokens": 16, "position_grid": 192},
            "data": {
                "corpus": "random",  # a prepared corpus of 16-channel latents takes its place
                "image_size": 32,
                "channels": 16,
                "context_tokens": 154,
                "context_size": 4096,
                "pooled_size": 2048,
            },
            "train": {
                "steps": 500_000,
                "batch_size": 4096,
                "learning_rate": 1e-4,
                "schedule": "constant",
                "warmup_steps": 1000,
                "compute_dtype": "bfloat16",
                "remat": "full",
                "condition_dropout": 0.464,
                "ema_decay": 0.99,
                "ema_every": 100,
                "checkpoint_every": 10_000,
            },
            # 16 divides the width of every depth. Above 32, the TPU compiler all-reduces gradients (docs/plan.md).
            "mesh": {"data": -1, "fsdp": 16},
            "evaluation": {
                "every": 50_000,
                "sampler": {"steps": 50, "guidance_scale": 5.0},
                "validation": {"examples": 4096, "batch_size": 1024, "grid": "paper"},
                "geneval": {"prompts_per_task": 0},
            },
        }
    )


def points():
    return {f"depth{depth}": {"model.depth": depth} for depth in DEPTHS}
