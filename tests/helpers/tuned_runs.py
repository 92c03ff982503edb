"""Runs with random weights that a tuning can start from, and tuned runs with random adapters; nothing is trained.

python tuned_runs.py BASE WORKDIR CONFIG.json     # tunes, as `rfjax tune` does, in a process that a test may kill
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from helpers.random_runs import random_params
from rfjax import config as schema
from rfjax.models import lora
from rfjax.training import adapted, checkpoint
from rfjax.training.run import describe, make_run
from rfjax.tune import config as tunings

BASE = {
    "name": "base",
    "model": {
        "depth": 2,
        "hidden": 32,
        "head_size": 16,
        "patch_size": 4,
        "time_embedding_size": 16,
        "position_tokens": 4,
        "position_grid": 8,
        "position_span": 4.0,
    },
    "data": {"corpus": "shapes", "image_size": 16},
    "train": {"steps": 7, "batch_size": 4, "warmup_steps": 0},
    "evaluation": {
        "sampler": {"steps": 2, "guidance_scale": 1.0},
        "validation": {"examples": 4, "batch_size": 4, "levels": 8},
        "geneval": {"prompts_per_task": 0},
    },
}
TUNING = {
    "held_out_reward": "geneval_graded",
    "steps": 5,
    "batch_size": 4,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "log_every": 1,
    "checkpoint_every": 2,
    "lora": {"rank": 4},
    "rollout": {"prompts": 6, "images_per_prompt": 2, "batch_size": 12, "steps_per_round": 2},
    "watch": {"prompts_per_task": 1, "images_per_prompt": 2, "every": 2},
}
REWARD = '''"""The brightness of an image."""
import numpy as np


def brightness(images, prompts):
    assert len(images) == len(prompts) and isinstance(prompts[0], str)
    return np.asarray(images).mean(axis=(1, 2, 3))


def nothing(images, prompts):
    return np.full(len(images), 0.5)


def broken(images, prompts):
    return np.array([np.nan, *np.zeros(len(images) - 1)])
'''
FACTS = {"schema": 1, "step": 7, "images": 28, "flops": 1e6, "train_seconds": 2.0}


def write_base(folder: Path, seed: int = 0, **overrides):
    """A run of random weights with a checkpoint of step 7, its raw and average weights different."""
    config = schema.apply_overrides(schema.from_dict(BASE), overrides)
    run = make_run(config, folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(schema.to_dict(config)))
    (folder / "run.json").write_text(json.dumps(describe(run, None)))
    raw, ema = random_params(run.backbone, seed), random_params(run.backbone, seed + 1)
    save(folder, checkpoint.Weights(raw, ema), 7)
    return run


def save(folder: Path, weights: checkpoint.Weights, step: int):
    with checkpoint.Checkpoints(folder, keep_last=2, kept=lambda step: False) as saving:
        saving.save(weights, step, FACTS | {"step": step})


def tuning(folder: Path, **overrides) -> tunings.TuneConfig:
    """A small tuning by the brightness of images; writes the reward's file in `folder`."""
    file = folder / "reward.py"
    file.write_text(REWARD)
    values = json.loads(json.dumps(TUNING)) | {"reward": f"{file}:brightness"}
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return tunings.from_dict(values)


def random_adapter(params, rank: int, seed: int):
    """An adapter none of whose factors is zero."""
    shapes = jax.eval_shape(lambda key: lora.init_adapter(key, params, rank), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(0.1 * rng.standard_normal(leaf.shape), "float32"), shapes)


def write_tuned(folder: Path, base: Path, step: int, params, rank: int = 4, alpha: float = 6.0):
    """The folder of a tuned run with a random adapter of a base run's checkpoint. Returns (raw, ema) adapters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    record = json.loads((base / "run.json").read_text())
    facts = adapted.describe(base, step, "ema", folder, rank, alpha)
    (folder / "run.json").write_text(json.dumps(record | {"run": folder.name, "role": "tuned", "adapter": facts}))
    raw, ema = (random_adapter(params, rank, seed) for seed in (1, 2))
    save(folder, checkpoint.Weights(raw, ema), 5)
    return raw, ema


def main() -> int:
    from rfjax.errors import Preempted
    from rfjax.tune.run import tune_run

    base, workdir, config = sys.argv[1:]
    try:
        tune_run(base, Path(workdir), tunings.from_dict(json.loads(Path(config).read_text())), evaluate=False)
    except Preempted:
        return Preempted.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
