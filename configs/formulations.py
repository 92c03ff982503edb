"""Which formulation learns best: SD3's 61 (section 5.1), on both embedded corpora, all else held fixed.

Every variant starts from the same weights and sees the same batches and the same noise. Variants differ in
their prediction, their path, and their density of t. Up to 16 are trained in one program. Each is then
sampled under six samplers, with its average and its raw weights. The rest is as in the shipped config
`shapes`, and the sizes of the scenes are those of `digits`.
"""

from rfjax.config_files import load_file
from rfjax.flow.formulation import PAPER

shapes, digits = load_file("shapes"), load_file("digits")
IN_A_FOLDERS_NAME = str.maketrans({"/": "_", "(": "_", ",": "_", ")": None})


def get_config():
    config = shapes.get_config()
    config.name = "formulations"
    config.model.update({"depth": 2, "hidden": 96})
    settings = {"together": 16, "steps": 1000, "learning_rate": 3e-3, "warmup_steps": 100}
    config.train.update(settings | {"checkpoint_every": 500, "log_every": 50})
    config.evaluation = {
        "validation": {"examples": 256, "batch_size": 128},
        "geneval": {"prompts_per_task": 0},
        "ranking": {"prompts_per_task": 24, "images_per_prompt": 1, "batch_size": 144},
    }
    return config


def points():
    return {
        f"{corpus}-{name.translate(IN_A_FOLDERS_NAME)}": {"formulation": name, "data.corpus": corpus} | sizes
        for corpus, sizes in digits.CORPORA.items()
        for name in PAPER
    }
