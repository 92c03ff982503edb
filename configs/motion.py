"""Clips in which one object moves: four depths of video models, in about an hour on two CPU cores.

Training takes 2.0e14 FLOPs. Each depth has a trunk of constant rate with a branch of each length. One attention
covers the text and the tokens of all frames; network and training are those of `shapes`. At depth 2, the lengths 250,
1,000 and 8,000 show the same prompts at compute C, 4C and 32C. The strict scores of such small models stay low; the
soft measures that are reported with them rise first (docs/motion.md).
"""

from ml_collections import ConfigDict

from rfjax.config_files import load_file

# depth -> (learning rate, lengths of the branches in steps)
TRUNKS = {
    1: (4e-3, (500, 1000, 2000, 4000)),
    2: (3e-3, (250, 1000, 2000, 4000, 8000)),
    3: (2.5e-3, (1000, 2000, 4000)),
    4: (2e-3, (1000, 2000)),
}


def get_config():
    config = load_file("shapes").get_config()
    config.name = "motion"
    config.model.update({"temporal_patch_size": 1, "temporal_attention": "joint"})
    config.data = ConfigDict({"corpus": "motion", "world": "first", "frames": 4, "image_size": 16})
    config.train.steps = 4000
    config.evaluation.weights = ("ema",)
    config.evaluation.geneval = ConfigDict({"prompts_per_task": 0})
    config.evaluation.temporal = ConfigDict({"prompts_per_task": 40, "clips_per_prompt": 4, "batch_size": 120})
    return config


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
