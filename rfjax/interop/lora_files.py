"""Writes a tuned run's adapter as a file that diffusers' `load_lora_weights` takes.

Each linear map has two tensors with PEFT's names, `NAME.lora_A.weight` [rank, inputs] and `NAME.lora_B.weight`
[outputs, rank]. Maps are named, split and ordered as in diffusers' layout of the network. alpha / rank is folded into
B, since the loader of SD3 refuses keys with an alpha. All maps in the file have the same rank. Factors of a lower rank
are padded with zeros, because older loaders use one alpha for all ranks and would scale those maps wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import folder_moved_when_whole
from rfjax.inputs.paths import local_path
from rfjax.interop import expressible
from rfjax.interop.exporting import origin_of, parameter_shapes
from rfjax.interop.layouts import DIFFUSERS, LeafPart, sources
from rfjax.interop.safetensors_files import Writer
from rfjax.interop.transforms import Linear
from rfjax.models.lora import MatrixAxes, matrix_axes, matrix_shape
from rfjax.outputs import check_output
from rfjax.training import adapted

PREFIX = "transformer."  # prefix of the network's keys; a file may also have keys of a pipeline's other models
Factors = Mapping[str, Float[np.ndarray, " ..."]]


def export_adapter(
    workdir: Path, *, out: Path, step: int | None = None, weights: str = "ema", dtype: str = "f32"
) -> Path:
    """Writes the adapter of a tuned run to the file `out`, and returns `out`.

    Raises `ConfigError` for a run that was not tuned, for a network that diffusers does not have, and if `out` exists.
    """
    out, workdir = local_path(out, "out"), local_path(workdir, "the run's folder")
    if adapted.adapter_of(workdir) is None:
        raise ConfigError(f"{workdir} is no tuned run and has no adapter; export it with --format diffusers")
    if weights not in adapted.KEYS:
        raise ConfigError(f"--weights is {weights}, and a tuned run keeps no power-function averages; give ema or raw")
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out is {out}; an adapter is one file, whose name must end in .safetensors")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or name another with --out")
    check_output(out, "--out")
    origin = origin_of(workdir, step, weights)
    expressible.check("diffusers", origin.config, origin.shapes)
    facts = adapted.adapter_of(workdir)
    shapes = parameter_shapes(origin.config.model, origin.shapes)
    factors = adapted.read_adapter(workdir, origin.step, adapted.KEYS[weights])
    parts = [part for part in sources(DIFFUSERS, origin.config.model, shapes) if part.leaf in factors]
    tensors = {}
    rank = max(each["a"].shape[-1] for each in factors.values())
    for part in parts:
        tensors |= tensors_of(part, factors[part.leaf], shapes[part.leaf], adapted.scale_of(facts), rank)
    if missing := factors.keys() - {part.leaf for part in parts}:
        raise RfjaxError(
            f"the layout diffusers has no place for the adapter of {sorted(missing)[0]}; give --format diffusers, "
            "which exports merged weights"
        )
    about = {"format": "pt", "run": origin.run, "step": str(origin.step), "weights": weights}
    with folder_moved_when_whole(out, files_of=True) as folder:
        with Writer(folder / out.name, {name: each.shape for name, each in tensors.items()}, dtype, about) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
    return out


def tensors_of(
    part: LeafPart, factors: Factors, shape: tuple[int, ...], scale: float, rank: int
) -> dict[str, Float[np.ndarray, "rows columns"]]:
    """Returns {name: tensor} of the factors of one layer of a kernel: A, and B times `scale`, both padded with zeros to
    `rank`. `factors` are the kernel's a and b; `shape` is that of the whole kernel, stacked layers included."""
    axes: MatrixAxes = matrix_axes(part.leaf)
    apart = matrix_shape(shape, axes).apart  # queries, keys and values: a name for each
    a, b = (factors[name] if part.layer is None else factors[name][part.layer] for name in "ab")
    if not apart:
        a, b = a[None], b[None]
    names = [name.removesuffix(".weight") for name in part.names]
    # B is a kernel with `rank` inputs, whose outputs the layout orders as it does the kernel's.
    ordered, tensors = Linear(swapped=part.transform.swapped), {}
    for number, name in enumerate(names):
        own = ordered.out("kernel", b[number])[0]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = _filled(a[number].T, rank, 0)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = _filled(np.float32(scale) * own, rank, 1)
    return tensors


def _filled(matrix, rank, axis):
    """Returns the matrix, padded with zeros along `axis` up to the file's rank."""
    width = [(0, 0), (0, 0)]
    width[axis] = (0, rank - matrix.shape[axis])
    return np.pad(np.asarray(matrix, np.float32), width)
