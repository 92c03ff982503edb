"""What `kills.py` kills: a table of kinds, and what each kind leaves that must not depend on when it was killed."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

EVERY = 50  # steps between evaluations
# The columns of a results table, and the fields of a row of metrics.jsonl, that depend on the clock or the last start
TIMED = {"seconds", "train_seconds", "code_hash"}
TIMED_ROW = {"train_seconds", "steps_per_second", "images_per_second", "flops_per_second", "mfu"}

STUDY = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "killed",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "mesh": MESH,
        "train": {"steps": 200, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 20, "condition_dropout": 0.1,
                  "ema_every": 1, "ema_decay": 0.9, "checkpoint_every": 10, "log_every": 5, **MORE},
        "evaluation": {"every": EVERY, "sampler": {"steps": 2, "guidance_scale": 2.0},
                       "validation": {"examples": 12, "batch_size": 8, "levels": 4},
                       "geneval": {"prompts_per_task": 2, "images_per_prompt": 2, "batch_size": 16}},
    })

def points():
    return POINTS
"""
TUNE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "method": "nft", "reward": "cleanness", "held_out_reward": "geneval_graded", "steps": 60, "batch_size": 8,
        "learning_rate": 1e-2, "warmup_steps": 5, "checkpoint_every": 5, "log_every": 5, "lora": {"rank": 8},
        "nft": {"keep_growth": 0.1},
        "rollout": {"prompts": 6, "images_per_prompt": 4, "batch_size": 24, "steps_per_round": 7},
        "watch": {"every": 20, "prompts_per_task": 1, "images_per_prompt": 2},
    })
"""


def study(points: dict, mesh: dict | None = None, **train) -> str:
    """The text of a study's config; `train` replaces fields of that section."""
    text = STUDY.replace("EVERY", str(EVERY)).replace("MESH", repr(mesh or {"data": 1, "fsdp": 2}))
    return text.replace("**MORE", f"**{train!r}").replace("POINTS", repr(points))


# The study that tuning, evaluating, collecting and exporting start from. It is trained once, undisturbed.
BASE = study({"a": {}, "b": {"model.depth": 2}}, steps=40)
WHOLE = {"data": -1, "fsdp": 1}  # each of the runs trained together is whole on one device
RATES = {f"rate{number}": {"train.learning_rate": 5e-4 * 2**number} for number in range(3)}


class Kind(NamedTuple):
    """What is killed.

    `command` is a function of (folder, config, base), and returns the command without the interpreter. `ends` returns
    what a finished command left in the folder, as {name: a value, or rows in any order}. `config` and `base` are texts
    of configs: of the command's own, and of the study that it starts from. With `in_copy` that study is copied into the
    folder first. `processes` says in how many processes the command may run. `product` names a file that appears whole
    at the end, if the command refuses to write it a second time.
    """

    command: Callable[[Path, Path, Path], list[str]]
    ends: Callable[[Path], dict[str, object]]
    config: str = ""
    base: str | None = None
    in_copy: bool = False
    processes: tuple[int, ...] = (1, 2)
    product: str | None = None


def study_command(folder: Path, config: Path, base: Path) -> list[str]:
    return ["study", f"--config={config}", f"--workdir={folder}"]


def study_ends(folder: Path) -> dict[str, object]:
    """The runs of a study, and the rows of its results table."""
    with open(folder / "results" / "long.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]
    return _runs(folder) | {"results table": rows}


def tune_ends(folder: Path) -> dict[str, object]:
    """The tuned runs, what tuning changed, and what was measured on held-out prompts."""
    rows = [(path.parent.name, line) for path in sorted(folder.glob("*/held_out.jsonl")) for line in path.open()]
    changes = json.loads((folder / "tuned.json").read_text())["changes"]
    return _runs(folder) | {
        "changes": changes,
        "held-out rows": [{"run": run, **json.loads(line)} for run, line in rows],
    }


def eval_ends(folder: Path) -> dict[str, object]:
    """The records of a run, and the files of GenEval."""
    from rfjax.evaluation.records import read_records

    run = folder / "a"
    records = [{key: value for key, value in one.items() if key not in TIMED} for one in read_records(run)]
    return {"records": records, "files": _hashes(run / "geneval")}


def report_ends(folder: Path) -> dict[str, object]:
    return {"results": _hashes(folder / "results"), "report": _hashes(folder / "report")}


def _runs(folder: Path) -> dict[str, object]:
    """What training leaves: the last checkpoint's checksums, the evaluated steps, the curve, torn or damaged files."""
    from rfjax.training import checkpoint

    ends: dict[str, object] = {}
    for run in sorted(path for path in folder.iterdir() if (path / "run.json").exists()):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = checkpoint.steps_saved(run)
        for step in steps:  # each is read whole, and its checksums verified
            for key in ("params", "ema"):
                for _ in checkpoint.read_arrays(run, step, key):
                    pass
        ends |= {
            f"{run.name}: state": checkpoint.read_facts(run, steps[-1])["checksums"],
            # the last checkpoint but one stays, too; its step may be one at which the run was stopped
            f"{run.name}: evaluated steps": [step for step in steps if step % EVERY == 0],
            f"{run.name}: curve": [{key: row[key] for key in row.keys() - TIMED_ROW} for row in rows],
            f"{run.name}: unreadable": sorted(path.name for path in run.glob("damaged/*")),
            f"{run.name}: torn": sorted(path.name for path in run.glob("checkpoints/*tmp*")),
            f"{run.name}: status": json.loads((run / "status.json").read_text())["state"],
        }
    return ends


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


KINDS = {
    "study": Kind(study_command, study_ends, study({"only": {}})),
    "together": Kind(study_command, study_ends, study(RATES, WHOLE, together=3), processes=(1,)),
    "branches": Kind(
        study_command, study_ends, study({"only": {}}, schedule="wsd", decay_fraction=0.25, branches=(80, 140, 200))
    ),
    "tune": Kind(
        lambda folder, config, base: ["tune", str(base), f"--config={config}", f"--workdir={folder}"],
        tune_ends,
        TUNE,
        base=BASE,
    ),
    "evaluate": Kind(
        lambda folder, config, base: [
            "eval",
            str(folder / "a"),
            "--config.evaluation.validation.examples=200",
            "--config.evaluation.geneval.prompts_per_task=20",
        ],
        eval_ends,
        base=BASE,
        in_copy=True,
    ),
    "collect": Kind(
        lambda folder, config, base: ["report", str(folder)], report_ends, base=BASE, in_copy=True, processes=(1,)
    ),
    "export": Kind(
        lambda folder, config, base: ["export", str(base / "b"), "--format=diffusers", f"--out={folder / 'exported'}"],
        lambda folder: _hashes(folder / "exported"),
        base=BASE,
        processes=(1,),
        product="exported",
    ),
}


def differences(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """What is not as in the undisturbed command; empty if nothing is. Rows of a table may be in any order."""
    wrong = []
    for name in sorted(found.keys() | expected.keys()):
        one, other = found.get(name), expected.get(name)
        if one == other:
            continue
        if not (
            isinstance(one, list) and isinstance(other, list) and all(isinstance(row, dict) for row in one + other)
        ):
            wrong.append(f"{name} differs")
            continue
        rows, doubled = (Counter(json.dumps(row, sort_keys=True) for row in some) for some in (one, other))
        lost, extra = (doubled - rows).total(), (rows - doubled).total()
        wrong += [f"{name}: {lost} rows lost or changed"] * bool(lost)
        wrong += [f"{name}: {extra} rows doubled or new"] * bool(extra)
    return wrong
