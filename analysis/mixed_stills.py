"""What do clips cost the stills of one network? A study of mixed runs and of runs on stills alone, on `motion`.

    rfjax study --config analysis/mixed_stills.py --workdir DIR

A mixed run shows stills and clips of the world `first`. A run on stills alone shows the same stills, in batches of the
same size, in as many steps as the mixed run has for stills: both have equal FLOPs for stills. Each has two seeds.
`MIXED_STEPS` makes the study smaller for a test.
"""

import os

from rfjax.config_files import load_file

motion = load_file("motion")
STEPS = int(os.environ.get("MIXED_STEPS", "4000"))  # of a mixed run
SEEDS = (0, 1)
DEPTH, RATE = 2, 3e-3
BATCH = 32  # clips
STILLS = 2 * BATCH  # of as many tokens
BUCKETS = ("16x16@2/3", "4x16x16@1/3")  # shares of examples, so half of the steps are stills


def get_config():
    config = motion.get_config()
    config.name = "mixed-stills"
    config.model.update({"depth": DEPTH, "hidden": 64 + 32 * DEPTH})
    config.data.frames = 1  # each bucket has its own
    config.train.update({"learning_rate": RATE, "batch_size": BATCH})
    config.evaluation.geneval.update({"prompts_per_task": 80, "images_per_prompt": 4, "batch_size": 120})
    config.evaluation.temporal.prompts_per_task = 0
    return config


def points():
    kinds = {
        "mixed": {
            "data.buckets": BUCKETS,
            "train.tokens_per_batch": -1,
            "train.steps": STEPS,
            "evaluation.temporal.prompts_per_task": 40,
        },
        "stills": {"data.buckets": ("16x16@1",), "train.batch_size": STILLS, "train.steps": STEPS // 2},
    }
    return {f"{name}-seed{seed}": kind | {"seed": seed} for name, kind in kinds.items() for seed in SEEDS}
