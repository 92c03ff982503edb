"""Writes a run's checkpoint in a layout that PyTorch code reads.

Only one array of the checkpoint is in memory at a time, except that a power-function average is made as a whole.
Everything is written under a temporary name, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from rfjax import config as schema
from rfjax.config import Config, ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.data.prepared import manifest
from rfjax.errors import ConfigError
from rfjax.files import folder_moved_when_whole, remove_left_behind
from rfjax.flow.resolution import shift_at
from rfjax.inputs.paths import local_path
from rfjax.interop import expressible, names, pipeline
from rfjax.interop.layouts import LAYOUTS, Layout, positions_shape, sources, tensor_shapes
from rfjax.interop.safetensors_files import DTYPES, Writer, split_by_size
from rfjax.models.backbone import make_backbone
from rfjax.models.positions import POSITIONS, cropped_positions
from rfjax.outputs import check_output
from rfjax.training import adapted, checkpoint
from rfjax.training.mesh import path_name
from rfjax.training.run import check_record, plan_run, read_config

SCHEDULER = "scheduler_config.json"
MAX_SHARD_BYTES = 10e9  # diffusers' default


class Origin(NamedTuple):
    """The checkpoint to export."""

    workdir: Path
    run: str
    step: int
    weights: str  # "ema", "raw", or a power-function average such as "power-0.12"
    config: Config
    shapes: BatchShapes


def parameter_shapes(model: ModelConfig, shapes: BatchShapes) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of every parameter, without allocating any."""
    tree = jax.eval_shape(make_backbone(model, shapes).init, jax.random.key(0))
    return {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def formula_positions(model: ModelConfig) -> Float[np.ndarray, "1 tokens channels"]:
    """Computes the position embeddings that training uses with `config.model.positions=formula`."""
    grid, tokens, span = model.position_grid, model.position_tokens, model.position_span
    return cropped_positions(grid, grid, grid=grid, tokens=tokens, span=span, channels=model.width)[None]


def export_run(
    workdir: Path,
    *,
    layout: str,
    out: Path,
    step: int | None = None,
    weights: str = "ema",
    dtype: str = "f32",
    max_shard_bytes: int | float = MAX_SHARD_BYTES,
    whole_pipeline: bool = False,
    models: str | Path | None = None,
) -> Path:
    """Writes a checkpoint of the run in `workdir` to `out`: a folder, or for `sd3` one file. Returns `out`.

    The checkpoint is that of `step`, by default the newest; `weights` is ema, raw or a power-function average. `dtype`
    is the tensors' type: f32, f16 or bf16. In a folder no file of weights is larger than `max_shard_bytes`, unless one
    tensor is.

    With `whole_pipeline` the folder is a `StableDiffusion3Pipeline`'s: the diffusers layout in `transformer` and
    `scheduler`, beside the frozen models of the run's prepared corpus. The frozen models come from the folder `models`,
    by default `config.data.prepared.models` or, if that is empty, the folder that the corpus was prepared with.

    Raises `ConfigError` if the layout cannot express a setting, and if `out` exists. Raises `RfjaxError` if the
    checkpoint is damaged or the disk is full. After an error no file is left behind.
    """
    out = local_path(out, "out")
    origin = origin_of(local_path(workdir, "the run's folder"), step, weights)
    expressible.check(layout, origin.config, origin.shapes)
    if whole_pipeline and layout != "diffusers":
        raise ConfigError(f"--format is {layout}; --pipeline is a folder of diffusers: give --format diffusers")
    if models is not None and not whole_pipeline:
        raise ConfigError(f"--models is {models}, which is read with --pipeline alone; add it, or leave --models out")
    single = layout == "sd3"
    for path in (out, names.manifest_of(out)) if single else (out,):
        if path.exists():
            raise ConfigError(f"{path} exists; remove it, or name another with --out")
        check_output(path, "--out")
    if not 0 < max_shard_bytes < math.inf:
        raise ConfigError(f"a file cannot have {max_shard_bytes} bytes; give --max-shard-gb a positive number")
    if (out.suffix == ".safetensors") != single:
        what = "one file, whose name must end in .safetensors" if single else "a folder; give it another name"
        raise ConfigError(f"--out is {out}; the {layout} layout is {what}")
    frozen_models = pipeline.check(origin.config, models) if whole_pipeline else None  # last, because it hashes them
    for line in remove_left_behind(out.parent):
        print(line, file=sys.stderr)
    with folder_moved_when_whole(out, files_of=single) as folder:
        target = folder / out.name if single else folder / "transformer" if whole_pipeline else folder
        if frozen_models:
            target.mkdir()
            pipeline.write(folder, origin.config, *frozen_models)
        sha256 = _write_tensors(origin, LAYOUTS[layout], target, dtype, max_shard_bytes)
        for path, text in _side_files(origin, layout, target).items():
            path.write_text(text)
        names.manifest_of(target).write_text(json.dumps(_manifest(origin, layout, dtype, sha256), indent=1) + "\n")
        if frozen_models:
            (folder / "scheduler").mkdir()
            (target / SCHEDULER).rename(folder / "scheduler" / SCHEDULER)
    return out


def how_to_call(workdir: Path, out: Path) -> str:
    """Returns Python code that samples with the pipeline in `out`, an export of the run in `workdir`."""
    config = read_config(Path(workdir))
    return pipeline.how_to_call(config, manifest.read(config.data.prepared.path), out)


def origin_of(workdir: Path, step: int | None, weights: str) -> Origin:
    """Returns the checkpoint to export from the run in `workdir`: that of `step`, by default the newest."""
    run = plan_run(read_config(workdir), workdir)
    check_record(run)
    return Origin(workdir, run.name, checkpoint.choose_step(workdir, step), weights, run.config, run.corpus.shapes)


def _write_tensors(origin, layout: Layout, target: Path, dtype, max_shard_bytes) -> dict[str, str]:
    """Writes the files of weights; returns {tensor's name: SHA-256}."""
    model = origin.config.model
    ours = parameter_shapes(model, origin.shapes)
    shapes = tensor_shapes(layout, model, ours)
    itemsize = DTYPES[dtype].itemsize
    if layout.name == "sd3":
        files = {target: shapes}
    else:
        parts = split_by_size(shapes, itemsize, max_shard_bytes)
        files = dict(zip((target / name for name in names.shard_names(layout.name, len(parts))), parts, strict=True))
    total = sum(int(np.prod(shape)) for shape in shapes.values()) * itemsize
    by_leaf: dict[str, list] = {}
    for source in sources(layout, model, ours):
        by_leaf.setdefault(source.leaf, []).append(source)
    with contextlib.ExitStack() as stack:
        writers = {}
        for path, part in files.items():
            writers |= dict.fromkeys(part, stack.enter_context(Writer(path, part, dtype, {"format": "pt"})))
        settings = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
        bar = stack.enter_context(tqdm(total=total, desc=f"export {origin.run}", **settings))

        def write(name, array):
            writers[name].write(name, array)
            bar.update(array.size * itemsize)

        buffer = layout.prefix + layout.positions
        if model.positions == "formula":
            write(buffer, formula_positions(model))
        for leaf, array in adapted.read_weights(origin.workdir, origin.step, origin.weights):
            if leaf == POSITIONS:
                write(buffer, array.reshape(positions_shape(model)))
            for source in by_leaf.get(leaf, ()):
                layer = array if source.layer is None else array[source.layer]
                for name, tensor in zip(source.names, source.transform.out(leaf.rsplit("/", 1)[1], layer), strict=True):
                    write(name, tensor)
            del array
        sha256 = {name: digest for writer in dict.fromkeys(writers.values()) for name, digest in writer.sha256.items()}
    if layout.name != "sd3" and len(files) > 1:
        places = {name: path.name for path, part in files.items() for name in part}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        names.index_of(target, layout.name).write_text(json.dumps(index, indent=1) + "\n")
    return sha256


def diffusers_config(config: Config, shapes: BatchShapes) -> dict[str, object]:
    """Returns the config.json of SD3Transformer2DModel."""
    model = config.model
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": shapes.latents[1],
        "patch_size": model.patch_size,
        "in_channels": shapes.latents[-1],
        "out_channels": shapes.latents[-1],
        "num_layers": model.depth,
        "attention_head_dim": model.head_size,
        "num_attention_heads": model.heads,
        "joint_attention_dim": shapes.context[1],
        "caption_projection_dim": model.width,
        "pooled_projection_dim": shapes.pooled,
        "pos_embed_max_size": model.position_grid,
        "qk_norm": "rms_norm" if model.qk_norm else None,
        "dual_attention_layers": list(range(model.dual_attention_blocks)),
    }


def scheduler_config(config: Config, shapes: BatchShapes) -> dict[str, object]:
    """Returns the scheduler_config.json of diffusers' Euler sampler; its timestep shift is that of training at the
    shape `shapes.latents`."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift_at(config, shapes.latents),
    }


def _side_files(origin, layout, target) -> Mapping[Path, str]:
    """Returns {path: text} of the files beside the weights: JSON, and for `plain` the PyTorch module."""

    def text(value):
        return json.dumps(value, indent=2) + "\n"

    if layout == "diffusers":
        return {
            target / "config.json": text(diffusers_config(origin.config, origin.shapes)),
            target / SCHEDULER: text(scheduler_config(origin.config, origin.shapes)),
        }
    if layout == "plain":
        model, shapes = origin.config.model, origin.shapes
        settings = {
            "depth": model.depth,
            "hidden": model.width,
            "heads": model.heads,
            "mlp": int(model.mlp_ratio * model.width),
            "patch_size": model.patch_size,
            "channels": shapes.latents[-1],
            "context_size": shapes.context[1],
            "pooled_size": shapes.pooled,
            "time_embedding_size": model.time_embedding_size,
            "position_grid": model.position_grid,
            "qk_norm": model.qk_norm,
            "dual_attention_blocks": model.dual_attention_blocks,
            "first_text_tokens": model.first_text_tokens if model.weight_sets == 3 else None,
            **_settings_of_clips(model),
        }
        module = f"{model.backbone}.py"
        source = resources.files("rfjax.interop").joinpath("torch_modules", module).read_text()
        return {target / "config.json": text(settings), target / module: source}
    return {}


def _settings_of_clips(model: ModelConfig) -> dict[str, object]:
    """Returns the settings of temporal patches, attention over time and rotary positions, without those at their
    defaults."""
    found = {"temporal_patch_size": model.temporal_patch_size} if model.temporal_patch_size > 1 else {}
    if model.temporal_attention != "joint":
        found["temporal_attention"] = model.temporal_attention
    if model.positions == "rotary":
        found |= {"rotary_split": list(model.rotary_split), "rotary_theta": model.rotary_theta}
    return found


def _manifest(origin, layout, dtype, sha256) -> dict[str, object]:
    facts = checkpoint.read_facts(origin.workdir, origin.step)
    return {
        "schema": 1,
        "layout": layout,
        "dtype": dtype,
        "run": origin.run,
        "step": origin.step,
        "weights": origin.weights,
        **checkpoint.spent(facts),
        "config": schema.to_dict(origin.config),
        "sha256": sha256,
    }
