"""Compares the compile time of the training gradient at depth 24 with that at depth 4, at the same width.

    python analysis/benchmarks/compile_time.py

The two are compiled in turn. Under the scan the program is the same at any depth (a test compares its length), so the
ratio should be near one.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models.backbone import make_backbone

SHAPES = BatchShapes(latents=(16, 16, 16), context=(77, 512), pooled=256, encoders=())
DEPTHS, WIDTH, ROUNDS = (4, 24), 512, 3


def seconds(depth):
    backbone = make_backbone(ModelConfig(depth=depth, hidden=WIDTH), SHAPES)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    batch = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 16, 16, 16), (2,), (2, 77, 512), (2, 256))]
    lowered = jax.jit(jax.grad(lambda p, *b: jnp.sum(jnp.square(backbone.apply(p, *b))))).lower(params, *batch)
    began = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - began


def main():
    seconds(DEPTHS[0])  # the first compilation of a process pays for more than itself
    times = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth in DEPTHS:
            jax.clear_caches()
            times[depth].append(seconds(depth))
    medians = {depth: statistics.median(values) for depth, values in times.items()}
    print(f"jax {jax.__version__}, width {WIDTH}: " + ", ".join(f"depth {d}: {s:.2f} s" for d, s in medians.items()))
    print(f"ratio {medians[DEPTHS[1]] / medians[DEPTHS[0]]:.2f}")


if __name__ == "__main__":
    main()
