"""Real pictures and real words: emoji of nine styles with names and keywords, as 32x32 pixels, on two CPU cores.

docs/emoji.md has the commands that make the corpus. Validation images show (name, style) pairs that are not in
training; each name is in training in other styles, and each style with other names. No run sees an image more than four
times, because more repetition changes the law (Muennighoff et al. 2023, arXiv 2305.16264, found that four epochs cost
little). An epoch has 702 steps of 16 images.
"""

from ml_collections import ConfigDict

CORPUS = "data/emoji/corpus"
# depth -> (learning rate, lengths of the branches in steps, seeds)
TRUNKS = {
    1: (3e-3, (350, 700, 1400, 2800), (0, 1)),
    2: (2.5e-3, (350, 700, 1400, 2800), (0,)),
    3: (2e-3, (700, 1400, 2800), (0,)),
    4: (1.5e-3, (700, 1400, 2800), (0,)),
    5: (1.25e-3, (1400, 2800), (0,)),
}


def get_config():
    return ConfigDict(
        {
            "name": "emoji",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {  # the largest size; each point sets its own
                "depth": 5,
                "hidden": 224,
                "head_size": 32,
                "patch_size": 4,
                "position_tokens": 8,
                "position_span": 8.0,
                "position_grid": 32,
            },
            "data": {
                "corpus": "prepared",
                "image_size": 32,
                "channels": 3,
                "context_tokens": 24,
                "context_size": 384,
                "pooled_size": 384,
                "prepared": {"path": CORPUS},
            },
            "train": {
                "steps": 2800,
                "learning_rate": 1.25e-3,
                "batch_size": 16,
                "schedule": "wsd",
                "warmup_steps": 100,
                "decay_fraction": 0.2,
                "decay_shape": "1-sqrt",
                "b2": 0.99,
                "weight_decay": 0.0,
                "condition_dropout": 0.1,
                "ema_decay": 0.95,
                "ema_every": 1,
                "checkpoint_every": 700,
                "log_every": 100,
            },
            "evaluation": {
                "sampler": {"method": "euler", "steps": 25, "guidance_scale": 3.0},
                "validation": {"examples": 960, "batch_size": 120},
                "geneval": {"prompts_per_task": 0},
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
            "seed": seed,
        }
        for depth, (rate, lengths, seeds) in trunks.items()
        for seed in seeds
    }
