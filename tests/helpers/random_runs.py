"""Random runs on disk and their networks in PyTorch, small enough to compare on a CPU."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax import config as schema
from rfjax.config import Config
from rfjax.data.corpus import load_corpus
from rfjax.models.backbone import Backbone, make_backbone
from rfjax.training import checkpoint

# The three released layouts, at a width that a test can bear: the shape of the network is theirs.
VARIANTS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "dual_qk_norm": {"qk_norm": True, "dual_attention_blocks": 2},
}
# For parametrize: what the second shows, the third shows too.
QUICK = [pytest.param(name, marks=pytest.mark.full) if name == "qk_norm" else name for name in VARIANTS]
MODEL = {"depth": 4, "hidden": 128, "head_size": 64, "position_grid": 12, "position_tokens": 8, "position_span": 8.0}
DATA = {"corpus": "random", "image_size": 16, "channels": 4, "context_tokens": 7, "context_size": 24, "pooled_size": 20}
# What the single file's readers take for granted; only depth is small.
SD3_MODEL = MODEL | {"depth": 3, "hidden": 192}
SD3_DATA = DATA | {"channels": 16, "context_tokens": 9, "context_size": 4096, "pooled_size": 2048}


class Run(NamedTuple):
    folder: Path
    config: Config
    backbone: Backbone
    params: dict  # average
    raw: dict


def make_config(model=MODEL, data=DATA, **sections) -> Config:
    return schema.from_dict(
        {"model": model, "data": data, "evaluation": {"geneval": {"prompts_per_task": 0}}} | sections
    )


def random_params(backbone, seed):
    """Weights under which every part of the network matters and the output is of unit scale: no zeros,
    scales away from one, fan-in scaled kernels."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if kind == "kernel":
            inputs = 2 if "proj" in path[-2].key else 1
            start = leaf.ndim - inputs - 1 - (2 if "qkv" in path[-2].key else "modulation" in path[-2].key)
            fan_in = np.prod(leaf.shape[max(start, 0) : max(start, 0) + inputs])
            return values * np.float32(1.0 / np.sqrt(fan_in))
        return np.float32(1.0) + 0.2 * values if kind == "scale" else 0.1 * values

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


def make_run(folder: Path, config: Config, seed: int = 0) -> Run:
    """A run's folder with one checkpoint of random weights at step 3, raw and average different."""
    corpus = load_corpus(config.data, config.seed)
    backbone = make_backbone(config.model, corpus.shapes)
    raw, ema = random_params(backbone, seed), random_params(backbone, seed + 1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(schema.to_dict(config)))
    (folder / "run.json").write_text(json.dumps({"run": "study/point"}))
    facts = {"schema": 1, "step": 3, "images": 96, "flops": 1e6, "train_seconds": 2.0}
    with checkpoint.Checkpoints(folder, keep_last=2, kept=lambda step: False) as saving:
        saving.save(checkpoint.Weights(raw, ema), 3, facts)
    return Run(folder, config, backbone, ema, raw)


def inputs(config: Config, height: int, width: int, seed: int = 0):
    """(z, t, context, pooled) of images, channels last."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    data = config.data
    z = draw(2, height, width, data.channels)
    return (
        z,
        np.array([0.25, 0.8125], np.float32),
        draw(2, data.context_tokens, data.context_size),
        draw(2, data.pooled_size),
    )


def our_velocity(run: Run, arrays, params=None):
    with jax.default_matmul_precision("highest"):
        z, *others = map(jnp.asarray, arrays)
        apply = jax.jit(run.backbone.apply)
        return np.asarray(apply(run.params if params is None else params, z[:, None], *others)[:, 0])
