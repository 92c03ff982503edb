"""The sweep behind the default study: the learning rate once, under mup, at the study's sizes.

Five rates, a factor of 2 apart, train as one program for each size and seed. `rfjax study` reports the optimum of each
size and whether they agree; another study takes the rate by "train.learning_rate": "from:FOLDER".
"""

from rfjax.config_files import load_file

shapes = load_file("shapes")
DEPTHS = (1, 2, 4)
RATES = tuple(2.0**-power for power in range(9, 4, -1))  # of hidden kernels at the base width
SEEDS = (0, 1)


def get_config():
    config = shapes.get_config()
    config.name = "shapes-rates"
    config.model.update({"parametrization": "mup", "base_width": 96})
    config.train.update({"role": "sweep", "together": len(RATES), "steps": 500, "checkpoint_every": 500})
    config.evaluation.geneval.prompts_per_task = 0
    return config


def points():
    return {
        f"depth{depth}-rate{place}-seed{seed}": {
            "model.depth": depth,
            "model.hidden": 64 + 32 * depth,
            "train.learning_rate": rate,
            "seed": seed,
        }
        for depth in DEPTHS
        for seed in SEEDS
        for place, rate in enumerate(RATES)
    }
