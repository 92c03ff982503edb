"""A tiny run on three aspect buckets: a network that takes any shape, on random latents.

As a script it trains on all devices, once as it is and once stopped and resumed, and prints what came out.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from helpers.bucketed_parts import Part
from helpers.training_tiny import rows, run_in, tiny_config
from rfjax.data.buckets import BucketedCorpus
from rfjax.data.corpus import load_corpus
from rfjax.errors import Preempted
from rfjax.models.backbone import Backbone
from rfjax.models.flops import training_flops
from rfjax.training import checkpoint
from rfjax.training.loop import train

SHAPES = ((4, 4), (2, 6), (6, 4))
TRAINING = (50, 30, 20)  # images, and so hundredths of the steps
SETTINGS = {
    "train.steps": 12,
    "train.batch_size": 4,
    "train.checkpoint_every": 4,
    "train.log_every": 1,
    "train.keep_last": 5,
}


def bucketed(config, training=TRAINING, validation=(9, 6, 3)):
    """The random corpus of a config at each of `SHAPES`."""
    plain = load_corpus(config.data, config.seed)
    parts = tuple(
        Part(plain.seed, replace(plain.shapes, latents=(*shape, config.data.channels)), first=1000 * number)
        for number, shape in enumerate(SHAPES)
    )
    return BucketedCorpus("tiny buckets", parts, config.seed, training, validation)


def flops(config):
    """Of an image of each of `SHAPES`, forward and backward."""
    return tuple(training_flops(config.model, part.shapes) for part in bucketed(config).parts)


def pixelwise(config):
    """A backbone that treats every pixel alike: one set of parameters for all shapes, compiled in no time."""
    channels, hidden = config.data.channels, config.model.width

    def init(key):
        first, last = jax.random.split(key)

        def kernel(key, *shape):
            return 0.3 * jax.random.normal(key, shape)

        return {
            "patch_embed": {"kernel": kernel(first, channels, hidden)},
            "final": {"linear": {"kernel": kernel(last, hidden, channels), "bias": jnp.zeros(channels)}},
        }

    def apply(params, z, t, context, pooled):
        x = z @ params["patch_embed"]["kernel"] + (t + pooled.mean(1) + context.mean((1, 2)))[:, None, None, None, None]
        return jnp.tanh(x) @ params["final"]["linear"]["kernel"] + params["final"]["linear"]["bias"]

    return Backbone(init, apply)


def bucketed_train(workdir, overrides=None, corpus=None, backbone=None, **arguments):
    config = tiny_config(SETTINGS | (overrides or {}))
    run = run_in(workdir, config, corpus or bucketed(config), backbone or pixelwise(config))
    return train(run, **{"log_seconds": 1e9} | arguments)


def stop_at(step):
    """A `stop` that turns true after so many steps of an attempt."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def stopped_and_resumed(workdir, at, **arguments):
    """The run, stopped after so many steps of each attempt."""
    while True:
        try:
            return bucketed_train(workdir, stop=stop_at(at), **arguments)
        except Preempted:
            continue


def main():
    root = Path(sys.argv[1])
    bucketed_train(root / "whole")
    stopped_and_resumed(root / "resumed", 7)
    sums = [checkpoint.read_facts(root / name, 12)["checksums"] for name in ("whole", "resumed")]
    print(json.dumps({"devices": len(jax.devices()), "sums": sums, "rows": rows(root / "whole")}))


if __name__ == "__main__":
    main()
