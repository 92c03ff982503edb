"""The default study at three times its compute: five depths, longer branches, a second size with two seeds.

All else is as in `shapes`. Its 1.45e14 FLOPs took 60 minutes of training on two busy CPU cores. The law, and what it
says of published claims: analysis/results/shapes_hour. Depth 5 has too few images to be on the frontier.
"""

from rfjax.config_files import load_file

# depth -> (learning rate, lengths of the branches in steps, seeds)
TRUNKS = {
    1: (4e-3, (500, 1000, 2000, 4000, 8000), (0, 1)),
    2: (3e-3, (500, 1000, 2000, 4000), (0, 1)),
    3: (2.5e-3, (1000, 2000, 4000), (0,)),
    4: (2e-3, (1000, 2000, 4000), (0,)),
    5: (1.75e-3, (1000, 2000), (0,)),
}
SHAPES = load_file("shapes")


def get_config():
    config = SHAPES.get_config()
    config.name = "shapes_hour"
    return config


def points():
    return SHAPES.points(TRUNKS)
