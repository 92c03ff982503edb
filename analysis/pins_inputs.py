"""Holds what `pins.py` gives to the commands: options, a study's config file, tables and detections."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

# Fields of the run that is trained, evaluated, exported and sampled from.
SMALL = (
    "model.depth=2 model.hidden=96 train.steps=30 train.warmup_steps=10 train.log_every=10 "
    "evaluation.validation.examples=64 evaluation.validation.batch_size=32 evaluation.sampler.steps=4 "
    "evaluation.geneval.prompts_per_task=2 evaluation.geneval.images_per_prompt=1 evaluation.geneval.batch_size=12 "
    "evaluation.ranking.prompts_per_task=2 evaluation.ranking.images_per_prompt=1 evaluation.ranking.batch_size=12 "
    "evaluation.ranking.samplers=4@2.5,2@1"
)
# Fields of a run that the layout sd3 can express. Its corpus is `random`, which has latents and texts of any size.
AS_SD3 = (
    "model.depth=1 model.hidden=64 model.head_size=64 model.patch_size=2 model.position_tokens=8 data.corpus=random "
    "data.channels=16 data.context_size=4096 data.pooled_size=2048 train.steps=1 train.batch_size=4 "
    "evaluation.geneval.prompts_per_task=0"
)

STUDY = """
from ml_collections import ConfigDict


def get_config():
    grid = {"patch_size": 4, "position_tokens": 4, "position_span": 4.0, "position_grid": 16}
    rate = {"learning_rate": 4e-3, "schedule": "wsd", "warmup_steps": 5, "decay_fraction": 0.3, "ema_every": 1}
    small = {"prompts_per_task": 2, "images_per_prompt": 1, "batch_size": 12}
    return ConfigDict({
        "name": "NAME",
        "model": {"depth": 1, "hidden": 64, "head_size": 32} | grid,
        "data": {"corpus": "shapes", "image_size": 16},
        "train": {"steps": 20, "batch_size": 16, "checkpoint_every": 10, "log_every": 5, "together": TOGETHER} | rate,
        "evaluation": {
            "every": 10,
            "sampler": {"method": "euler", "steps": 4, "guidance_scale": 2.0},
            "validation": {"examples": 32, "batch_size": 32},
            "geneval": small if TOGETHER == 1 else {"prompts_per_task": 0},
            "ranking": {} if TOGETHER == 1 else small | {"samplers": ("4@2.5", "2@1")},
        },
    })


def points():
    return POINTS
"""
# Points of a study in that file: steps, and formulations that are trained together.
STEPS = {f"steps{steps}": {"train.steps": steps} for steps in (12, 20)}
FORMULATIONS = {
    name: {"formulation": formulation}
    for name, formulation in {"lognorm": "rf/lognorm(0.00,1.00)", "uniform": "rf", "cosmap": "rf/cosmap"}.items()
}

FITS = {
    "default": ("{tmp}/six_runs.csv", "--metric=geneval_overall --metric=geneval_colors"),
    "power": ("{tmp}/six_runs.csv", "--law=power --budget=1e14"),
    "power, l1": ("{tmp}/six_runs.csv", "--law=power --loss=l1 --seed=1"),
    "saturating": ("{tmp}/six_runs.csv", "--law=saturating --profile --resamples=200"),
    "parametric": ("{tmp}/six_runs.csv", "--law=parametric --budget=1e14"),
    "parametric, isoflop": ("{tmp}/isoflop.csv", "--law=parametric --budget=1e23 --intervals=runs --resamples=200"),
    "broken": ("{tmp}/broken.csv", "--law=broken --budget=1e13 --resamples=100"),
    "approach2, isoflop": ("{tmp}/isoflop.csv", "--law=approach2 --budget=1e23 --resamples=200"),
    "approach1, curves": ("{tmp}/curves.csv", "--law=approach1 --budget=1e21 --resamples=200"),
}
LAUNCHES = {
    "slurm": "--on=slurm --gpus-per-node=8 --time=1-00:00:00 --setup=true",
    "tpu-vm": "--on=tpu-vm --accelerator=v5p-256 --zone=here --workdir=/mnt/study --spot",
    "gke": "--on=gke --accelerator=v5p-256 --image=image --volume=pvc:claim",
}


def write_tables(folder: Path) -> None:
    """Writes four tables: the six runs of a real study; and runs at seven budgets, runs with several rows each, and
    runs of a broken law, all three with a small ripple on the loss."""
    folder.mkdir(exist_ok=True)
    six_runs = Path(__file__).parents[1] / "tests" / "pinned" / "six_runs.csv"
    (folder / "six_runs.csv").write_bytes(six_runs.read_bytes())
    ends, curves = ["run,params,images,flops,loss"], ["run,params,images,flops,loss"]
    sizes = [round(10 ** (7.5 + 0.5 * place)) for place in range(5)]

    def row(size: int, images: float) -> str:
        loss = (1.7 + 400 / size**0.34 + 410 / images**0.28) * (1 + 0.002 * math.sin(size + images))
        return f"size{size},{size},{images:.6g},{6 * size * images:.6g},{loss:.6g}"

    for place, budget in enumerate(10 ** (18 + 0.5 * step) for step in range(7)):
        ends += [row(size, budget / (6 * size)).replace(",", f"-budget{place},", 1) for size in sizes]
    for size in sizes:
        curves += [row(size, 10 ** (7 + 0.25 * step)) for step in range(14)]
    (folder / "isoflop.csv").write_text("\n".join(ends) + "\n")
    (folder / "curves.csv").write_text("\n".join(curves) + "\n")
    broken = ["run,flops,loss"]
    for place in range(20):
        flops = 10 ** (4 + 0.4 * place)
        loss = (0.5 + 20 * flops**-0.1 * (1 + (flops / 1e8) ** 2) ** -0.15) * (1 + 0.0005 * math.sin(7 * place))
        broken.append(f"run{place},{flops:.6g},{loss:.6g}")
    (folder / "broken.csv").write_text("\n".join(broken) + "\n")


def _asked(tag: str, *items: Mapping[str, object]) -> dict[str, object]:
    include = [{"count": 1} | dict(item) for item in items]
    return {"tag": tag, "include": include, "prompt": f"{tag}: {' and '.join(str(item['class']) for item in items)}"}


def write_detections(folder: Path) -> None:
    """Writes prompts of GenEval's six tasks, and boxes of three images each, of which some are right."""
    folder.mkdir()
    prompts = [
        _asked("single_object", {"class": "dog"}),
        _asked("two_object", {"class": "dog"}, {"class": "cup"}),
        _asked("counting", {"class": "cup", "count": 2}) | {"exclude": [{"class": "cup", "count": 3}]},
        _asked("colors", {"class": "cup", "color": "red"}),
        _asked("position", {"class": "dog"}, {"class": "cup", "position": ["left of", 0]}),
        _asked("color_attr", {"class": "dog", "color": "brown"}, {"class": "cup", "color": "blue"}),
    ]
    left, right, over = [10, 10, 40, 40], [60, 12, 95, 44], [62, 14, 97, 46]
    images = [
        {"detections": {"dog": [[*right, 0.95]], "cup": [[*left, 0.95]]}},
        {"detections": {"dog": [[*left, 0.6]], "cup": [[*right, 0.92], [*over, 0.91]]}},
        {"detections": {"cup": [[*left, 0.2], [*right, 0.94]]}},
    ]
    colors = [{"dog": ["brown"], "cup": ["blue"]}, {"dog": ["red"], "cup": ["red", "blue"]}, {"cup": ["blue", "red"]}]
    images = [image | {"colors": named} for image, named in zip(images, colors, strict=True)]
    found = [{"prompt_index": i, "sample": j} | image for i in range(len(prompts)) for j, image in enumerate(images)]
    for name, rows in (("metadata", prompts), ("detections", found), ("fewer", found[:-2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
