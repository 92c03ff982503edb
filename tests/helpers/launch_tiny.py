"""A study of two points for the launchers, and stand-ins for the programs that they call."""

import os
import sys
from pathlib import Path

STUDY = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "tiny",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "train": {"steps": %d, "batch_size": 64, "learning_rate": 1e-3, "warmup_steps": 2, "condition_dropout": 0.1,
                  "ema_every": 1, "ema_decay": 0.5, "checkpoint_every": 20, "log_every": 20},
        "evaluation": {"sampler": {"steps": 2, "guidance_scale": 2.0},
                       "validation": {"examples": 12, "batch_size": 8, "levels": 4},
                       "geneval": {"prompts_per_task": 0}},
    })

def points():
    return {"depth1": {"model.depth": 1}, "Depth_2": {"model.depth": 2}}
"""

WEIRD = """it's a $(study) of "50%" `x`"""  # nothing of this may be read by a shell, by sbatch or by Kubernetes

# What each stand-in is called with, one JSON list a line, in calls.jsonl beside it.
RECORD = f"""#!{sys.executable} -ES
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "calls.jsonl"), "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + chr(10))
"""


def write_study(folder: Path, name="tiny.py", steps=100) -> Path:
    path = folder / name
    path.write_text(STUDY % steps)
    return path


def stand_in(folder: Path, name: str, does: str = "") -> None:
    """A program `name` in `folder` that notes its arguments, then does `does` (Python)."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(RECORD + does)
    (folder / name).chmod(0o755)


def path_with(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
