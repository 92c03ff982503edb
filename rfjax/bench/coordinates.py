"""The coordinate check: how the sizes of activations move with width and depth while networks learn.

If a parametrisation is right, the mean |x| of every activation does not depend on width, nor, under completep, on
depth. This holds at the start and after a few steps (Yang et al. 2022, arXiv 2203.03466, appendix D.1). A slope away
from 0 names a part whose initial value or rate is wrong. AdaLN-zero lets only the last layer move at first, so the
sizes are taken at step 10 and at the last step. The size of a kernel's update is its largest singular value times
sqrt(inputs / outputs): how much the update can change the kernel's outputs, relative to the kernel's inputs (Yang,
Simon and Bernstein 2023, arXiv 2310.17813). Under a right parametrisation this size does not depend on width either. So
a kernel whose update's size does depend on width has a wrong rate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from rfjax.config import Config
from rfjax.config_rules import check
from rfjax.data.batch import Batch
from rfjax.data.loader import batch_of_step
from rfjax.errors import ConfigError
from rfjax.models.parametrization import PARAMETRIZATIONS
from rfjax.models.sharding import path_name
from rfjax.training.loss import run_keys
from rfjax.training.optimizer import make_optimizer, matrix_of, matrix_shape
from rfjax.training.program import lower_train_step
from rfjax.training.run import Run, make_run
from rfjax.training.state import init_state

BOUND = 0.15  # the largest |slope| of log mean |x| in log width or log depth that counts as flat
LEAF_BOUND = 0.5  # the same for the size of a kernel's update; a rate that lacks its factor 1/width gives slope 1
FIRST = 10  # the first step at which sizes are taken
UPDATE = "update of "  # begins the name of a kernel's update
EXAMPLES = 64  # number of validation examples whose activations are measured


def of_size(config: Config, *, width: int | None = None, depth: int | None = None, steps: int) -> Config:
    """Returns the config with another width or depth (None keeps the config's own), with `steps` steps, and with a
    constant learning rate without warm-up. Raises `ConfigError` for a size that the network cannot have."""
    model = dataclasses.replace(config.model, hidden=width or config.model.width, depth=depth or config.model.depth)
    changes = {"steps": steps, "schedule": "constant", "warmup_steps": 0, "branches": (), "together": 1}
    changed = dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, **changes))
    check(changed)
    return changed


def _examples(batch: Batch):
    """Returns the network's inputs (z, t, context, pooled) for a batch. z is the latents mixed with noise at times t
    that are spread evenly over (0, 1)."""
    count = len(batch.latents)
    t = (np.arange(count, dtype=np.float32) + 0.5) / count
    noise = np.random.default_rng(0).standard_normal(batch.latents.shape, np.float32)
    at = t.reshape(-1, *[1] * (batch.latents.ndim - 1))
    return (1 - at) * batch.latents + at * noise, t, *batch.conditions


def sizes_of(run: Run, seeds: int, steps: int) -> dict[int, dict[str, list[float]]]:
    """Trains a run's network for `steps` steps with each of the seeds 0 to `seeds` - 1, each on its own batches.

    Returns {step: {name: [a value for each seed]}} for step 10 and the last step. An activation's name has the mean |x|
    of the activation. The name `UPDATE` + a kernel's path has the size of the kernel's change since the initial values
    (`update_sizes`).
    """
    config, taken = run.config, sorted({FIRST, steps})
    found: dict[int, dict[str, list[float]]] = {step: {} for step in taken}
    size = config.train.batch_size
    examples = _examples(run.corpus.examples(np.arange(EXAMPLES, dtype=np.uint64), "validation"))
    with run.computing():
        program, optimizer = lower_train_step(run).compile(), make_optimizer(config)
        start = jax.jit(lambda key: init_state(run.backbone.init, optimizer, key))
        measure = jax.jit(run.backbone.activations)
        for seed in range(seeds):
            state = start(run_keys(seed)[0])
            first = jax.device_get(state.params)
            for step in range(steps):
                state, _ = program(state, batch_of_step(run.corpus, seed * steps + step, batch_size=size))
                if step + 1 in found:
                    for name, value in jax.device_get(measure(state.params, *examples)).items():
                        found[step + 1].setdefault(name, []).append(float(value))
                    for name, value in update_sizes(first, jax.device_get(state.params)).items():
                        found[step + 1].setdefault(UPDATE + name, []).append(value)
    return found


def update_sizes(before, after) -> dict[str, float]:
    """Returns {kernel's path: size of the kernel's update} between two trees of parameters.

    The size is the largest singular value of (after - before), times sqrt(inputs / outputs). If a kernel consists of
    several matrices, its size is the mean of the matrices' sizes.
    """
    found, new = {}, dict(jax.tree_util.tree_leaves_with_path(after))
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        name = path_name(path)
        if not name.endswith("kernel"):
            continue
        axes = matrix_of(name) or (tuple(range(-leaf.ndim, -1)), (-1,))
        count, inputs, outputs = matrix_shape(leaf.shape, axes)
        places = [axis for axis in range(-leaf.ndim, 0) if axis not in (*axes[0], *axes[1])]
        update = np.transpose(np.asarray(new[path], float) - leaf, (*places, *axes[0], *axes[1]))
        norms = np.linalg.norm(update.reshape(count, inputs, outputs), 2, axis=(1, 2))
        found[name] = float(norms.mean() * math.sqrt(inputs / outputs))
    return found


def slopes(sizes: Sequence[int], values: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float | None]:
    """Fits a line by least squares to log(value) against log(size), for each name that the networks of all sizes have.

    `sizes` are the widths or depths. `values` holds {name: [a value for each seed]} for each size; the logarithms are
    averaged over seeds. Returns {name: slope}; the slope is None if one of the name's values is zero or not finite.
    """
    x = np.log(np.asarray(sizes, float))
    x = x - x.mean()
    found: dict[str, float | None] = {}
    for name in values[0]:
        if all(name in each for each in values):
            with np.errstate(divide="ignore", invalid="ignore"):
                y = np.array([np.mean(np.log(each[name])) for each in values])
            found[name] = float(x @ y / (x @ x)) if np.isfinite(y).all() else None
    return found


def judge(found: Mapping[str, float | None], bound: float = BOUND) -> list[tuple[str, float | None]]:
    """Returns (name, slope) of each activation or kernel whose |slope| exceeds `bound` or that has no slope (None).
    Names without a slope come first, then the steepest."""

    def size(pair):
        return math.inf if pair[1] is None else abs(pair[1])

    return sorted((pair for pair in found.items() if size(pair) > bound), key=size, reverse=True)


def measure_coordinates(
    config: Config,
    *,
    widths: Sequence[int],
    depths: Sequence[int],
    seeds: int = 3,
    steps: int = 20,
    say: Callable[[str], None] = print,
) -> dict:
    """Measures the sizes of activations at each of `widths` with the config's depth, and at each of `depths` with the
    config's width. An axis with fewer than two different values is left out.

    Returns the result's fields for the record that --json writes. Before it trains, it raises `ConfigError` if both
    axes are left out, for fewer than 10 steps, and for a size that the network or the parametrisation cannot have.
    """
    if steps < FIRST:
        raise ConfigError(
            f"--steps is {steps}; it must be at least {FIRST}, because in the first steps only the last layer moves"
        )
    asked = {"width": sorted(set(widths)), "depth": sorted(set(depths))}
    if max(map(len, asked.values())) < 2:
        given = " and ".join(f"--{axis}s is {','.join(map(str, sizes)) or 'empty'}" for axis, sizes in asked.items())
        raise ConfigError(f"{given}; a slope needs two different values: give two or more --widths or --depths")
    configs = {
        axis: [of_size(config, **{axis: size}, steps=steps) for size in sizes]
        for axis, sizes in asked.items()
        if len(sizes) > 1
    }
    axes: dict[str, dict] = {}
    for axis, changed in configs.items():
        values = []
        for size, one in zip(asked[axis], changed, strict=True):
            say(f"{axis} {size}: {steps} steps from {seeds} seeds")
            values.append(sizes_of(make_run(one), seeds, steps))
        by_step = {}
        for step in values[0]:
            at = [each[step] for each in values]
            every = slopes(asked[axis], at)
            found = {name: slope for name, slope in every.items() if not name.startswith(UPDATE)}
            moved = {name.removeprefix(UPDATE): slope for name, slope in every.items() if name.startswith(UPDATE)}
            suspects = judge(moved, LEAF_BOUND) if axis == "width" else []
            by_step[str(step)] = {"sizes": at, "slopes": found, "steep": judge(found)}
            by_step[str(step)] |= {"update_slopes": moved, "suspects": suspects}
        axes[axis] = {"sizes": asked[axis], "steps": by_step}
    by_width, by_depth = PARAMETRIZATIONS[config.model.parametrization]
    flat = {axis: not any(step["steep"] for step in found["steps"].values()) for axis, found in axes.items()}
    promised = {"width": by_width, "depth": by_depth}
    return {
        "parametrization": config.model.parametrization,
        "learning_rate": config.train.learning_rate,
        "seeds": seeds,
        "bound": BOUND,
        "axes": axes,
        "flat": flat,
        "promised": {axis: promised[axis] for axis in axes},
    }


def lines(record: Mapping) -> list[str]:
    """Returns the lines for the console.

    For each axis (width, depth) and step: the kernels whose updates grow or shrink with the axis, if there are any;
    then the range of the activations' slopes if all activations are flat, else up to eight that are not flat, those
    without a slope first and then the steepest. After an axis's steps, its verdict.
    """
    name, shown = record["parametrization"], []
    for axis, found in record["axes"].items():
        sizes = ", ".join(map(str, found["sizes"]))
        for step, at in found["steps"].items():
            steep = at["steep"]
            if at["suspects"]:
                named = ", ".join(f"{part} {_shown(slope)}" for part, slope in at["suspects"])
                shown.append(f"{axis}, step {step}: kernels whose updates grow or shrink with {axis}: {named}")
            head = f"{axis} {sizes}, step {step}: {len(at['slopes'])} activations"
            if not steep:
                finite = [slope for slope in at["slopes"].values() if slope is not None]
                shown.append(f"{head}, all flat; slopes {min(finite):+.2f} to {max(finite):+.2f}")
                continue
            parts = ", ".join(f"{part} {_shown(slope)}" for part, slope in steep[:8])
            more = f" and {len(steep) - 8} more" if len(steep) > 8 else ""
            shown.append(f"{head}, {len(steep)} not within ±{record['bound']}: {parts}{more}")
        verdict = "flat" if record["flat"][axis] else "NOT flat"
        expected = "" if record["promised"][axis] else f"; {name} does not promise it"
        shown.append(f"verdict for {name} in {axis}: {verdict}{expected}")
    return shown


def _shown(slope: float | None) -> str:
    return "is zero or not finite" if slope is None else f"{slope:+.2f}"


def draw(record: Mapping, file: Path, made_by: str) -> None:
    """Draws mean |x| of every activation against width and against depth into a PNG file, with a panel for each axis
    and step.

    The curves of the six steepest activations outside the bound are labelled. `made_by` is stored in the PNG's metadata
    as "Software".
    """
    from matplotlib.figure import Figure

    axes = record["axes"]
    rows = [(axis, step) for axis, found in axes.items() for step in found["steps"]]
    figure = Figure(figsize=(4.2 * len(rows), 3.6), layout="constrained")
    for panel, (axis, step) in zip(np.atleast_1d(figure.subplots(1, len(rows))), rows, strict=True):
        found, at = axes[axis], axes[axis]["steps"][step]
        steep = [name for name, _ in at["steep"]]
        for name in at["slopes"]:
            means = [float(np.exp(np.mean(np.log(np.maximum(each[name], 1e-30))))) for each in at["sizes"]]
            style = {"label": name, "lw": 1.4} if name in steep[:6] else {"color": "#999999", "lw": 0.7}
            panel.plot(found["sizes"], means, marker=".", **style)
        panel.set(xscale="log", yscale="log", xlabel=axis, title=f"step {step}")
        panel.set_xticks(found["sizes"], list(map(str, found["sizes"])))
        panel.minorticks_off()
        if steep:
            panel.legend(fontsize=6)
    figure.axes[0].set_ylabel(f"mean |x| under {record['parametrization']}")
    figure.savefig(file, dpi=150, metadata={"Software": made_by})


def parse_sizes(text: str | None, option: str) -> tuple[int, ...]:
    """Returns the whole numbers in an option's text, such as 64,128,256; () for None. Raises `ConfigError` for any
    other text."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ConfigError(f"{option} is {text!r}; it must be whole numbers of at least 1, such as 64,128,256")
    return tuple(map(int, parts))
