"""A tiny run on stills and clips of two lengths, with batches of equally many tokens: a network that takes any shape.

As a script, `python mixed_tiny.py FOLDER MESH` trains on all devices, once as it is and once stopped and resumed, and
prints what came out; `python mixed_tiny.py FOLDER STEPS` trains so many steps, to be killed on the way.
"""

import json
import sys
from pathlib import Path

import jax

from helpers.bucketed_tiny import pixelwise, stop_at
from helpers.training_tiny import rows, run_in
from rfjax.config import apply_overrides, from_dict
from rfjax.data.corpus import load_corpus
from rfjax.errors import Preempted
from rfjax.training import checkpoint
from rfjax.training.loop import train

BUCKETS = ("16x16@0.5", "8x16x16@0.25", "9x16x16@1/4")
SETTINGS = {
    "model.depth": 2,
    "model.hidden": 16,
    "model.head_size": 8,
    "model.patch_size": 4,
    "data.corpus": "motion",
    "data.world": "full",
    "data.buckets": BUCKETS,
    "train.steps": 8,
    "train.batch_size": 4,
    "train.tokens_per_batch": -1,
    "train.warmup_steps": 2,
    "train.learning_rate": 1e-2,
    "train.checkpoint_every": 4,
    "train.log_every": 1,
    "evaluation.geneval.prompts_per_task": 0,
}


def mixed_config(overrides=None):
    return apply_overrides(from_dict({}), SETTINGS | (overrides or {}))


def mixed_run(config, workdir=None):
    return run_in(workdir, config, load_corpus(config.data, config.seed), pixelwise(config))


def mixed_train(workdir, overrides=None, **arguments):
    return train(mixed_run(mixed_config(overrides), workdir), **{"log_seconds": 1e9} | arguments)


def main():
    root, what = Path(sys.argv[1]), sys.argv[2]
    if what.isdigit():
        mixed_train(root, {"train.steps": int(what), "train.checkpoint_every": 10})
        return
    data, fsdp = map(int, what.split("x"))
    overrides = {"train.batch_size": 8, "mesh.data": data, "mesh.fsdp": fsdp}
    mixed_train(root / "whole", overrides)
    for _ in range(2):
        try:
            mixed_train(root / "resumed", overrides, stop=stop_at(5))
        except Preempted:
            continue
    steps = SETTINGS["train.steps"]
    sums = [checkpoint.read_facts(root / name, steps)["checksums"] for name in ("whole", "resumed")]
    print(json.dumps({"devices": len(jax.devices()), "sums": sums, "rows": rows(root / "whole")}))


if __name__ == "__main__":
    main()
