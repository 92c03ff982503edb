"""Makes a run of a PyTorch checkpoint, to train on, to sample from or to evaluate.

Only safetensors are read: a pickle can run any code, and is refused unread.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rfjax import config as schema
from rfjax.config import Config, DataConfig
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import folder_moved_when_whole
from rfjax.inputs.paths import local_path
from rfjax.interop import names
from rfjax.interop.exporting import formula_positions, parameter_shapes
from rfjax.interop.layouts import LAYOUTS, Layout, sources, tensor_shapes
from rfjax.interop.recognise import compare, network_of, recognise
from rfjax.interop.safetensors_files import Reader, sha256_of
from rfjax.models.positions import POSITIONS
from rfjax.outputs import check_output
from rfjax.training import checkpoint, run_folder
from rfjax.training.run import describe, plan_run

# (position_tokens, position_span) of the released models: 1024 px spans [0, 16) (SD3 section 5.3.2).
RELEASED_POSITIONS = (64, 16.0)


class FoundCheckpoint(NamedTuple):
    """The files of a checkpoint on disk, and the JSON beside them."""

    path: Path
    files: tuple[Path, ...]
    manifest: Mapping[str, object]  # of `rfjax export`; empty for a foreign checkpoint
    settings: Mapping[str, object]  # diffusers' config.json; empty where there is none
    shift: float | None = None  # of the scheduler beside the network
    name: str = ""


class Imported(NamedTuple):
    """The imported network, and what a user should know of it."""

    config: Config
    layout: str
    params: int
    ignored: int  # tensors of an autoencoder or of text encoders
    notes: tuple[str, ...]


def import_checkpoint(
    path: Path, out: Path, *, base: Config | None = None, overrides: Mapping[str, object] = {}
) -> Imported:
    """Makes the run folder `out` of a checkpoint: at step 0, with its weights as raw and as average weights.

    `base` gives the settings outside the network; by default they are those of the export's manifest, else the corpus
    `random` of the right sizes. Raises `ConfigError` for a checkpoint that is not recognised, and where `base` or
    `overrides` contradict the tensors; `RfjaxError` for a damaged file. Nothing is left behind then.
    """
    out = local_path(out, "out")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or name another with --out")
    check_output(out, "--out")
    source = find(local_path(path, "path"))
    with Reader(source.files) as reader:
        layout, prefix, found = _layout(source, reader)
        ignored = len(reader.tensors) - len(found)
        config = _config(source, layout, found, base, overrides)
        shapes = plan_run(config).corpus.shapes
        _check_data(config, layout, found, shapes)
        ours = parameter_shapes(config.model, shapes)
        notes = []
        trained_on = source.manifest.get("config", {}).get("data", {}).get("corpus")
        if trained_on not in (None, config.data.corpus):
            notes.append(f"it was trained on the corpus {trained_on}, whose words differ from {config.data.corpus}'s")
        expected = tensor_shapes(layout, config.model, ours)
        compare({name.removeprefix(layout.prefix): shape for name, shape in expected.items()}, found, str(source.path))
        get = _Verified(reader, prefix, layout, source.manifest)
        grid = get(layout.positions)
        stored = None
        if not np.array_equal(formula_positions(config.model).astype(grid.dtype), grid):
            fields = "config.model.position_tokens and position_span"
            notes.append(f"its positions are not those of {fields}: they are kept (config.model.positions=stored)")
            model = {**schema.to_dict(config)["model"], "positions": "stored"}
            config = schema.from_dict({**schema.to_dict(config), "model": model})
            ours = parameter_shapes(config.model, shapes)
            stored = np.asarray(grid, np.float32).reshape(ours[POSITIONS])
        params = _parameters(layout, config, ours, get, stored)
    run = plan_run(config, out)
    _write_run(run, source, params)
    return Imported(config, layout.name, run.parameter_count, ignored, tuple(notes))


def lines(imported: Imported, out: Path) -> list[str]:
    """Lines for a console: the imported network, and the commands that can follow."""
    model, notes = imported.config.model, list(imported.notes)
    dual = model.dual_attention_blocks
    network = f"{imported.layout} layout: depth {model.depth}, width {model.width}, {model.heads} heads"
    network += f", dual attention in the first {dual} blocks" if dual else ""
    if imported.ignored:
        notes.append(f"{imported.ignored} tensors beside the network (autoencoder, text encoders) were left out")
    return [
        network + (", QK-norm" if model.qk_norm else ""),
        f"{imported.params:,} parameters; corpus {imported.config.data.corpus}",
        *(f"note: {text}" for text in notes),
        f"imported: {out}",
        f"train on:   rfjax train --config={out}/config.json --workdir={out}",
        f"or, with another config: rfjax train --config=FILE.py --workdir=NEW --init={out}",
    ]


def find(path: Path) -> FoundCheckpoint:
    """Finds the files of a checkpoint: a folder, a pipeline's folder, or one file. It reads only JSON."""
    if path.suffix in names.PICKLES:
        raise ConfigError(f"{path} is a pickle, which can run any code; get the same weights as safetensors")
    if path.is_file() and path.suffix != ".safetensors":
        raise ConfigError(f"{path} is no safetensors file; name a folder with such files, or one of them")
    if path.is_file():
        named = {f"{stem}.safetensors" for stem in names.WEIGHTS.values()}
        if path.name in named and any((path.parent / name).is_file() for name in ("config.json", names.MANIFEST)):
            return find(path.parent)  # the JSON beside it says more than the tensors do
        return FoundCheckpoint(path, (path,), _json(names.manifest_of(path)), {}, None, path.stem)
    if not path.is_dir():
        raise ConfigError(f"no file or folder at {path}; name a folder with safetensors files, or one such file")
    if (path / "run.json").is_file() and (path / "checkpoints").is_dir():
        raise ConfigError(f"{path} is a run already: train on there, or start another from it with --init={path}")
    name, schedulers = path.name, [path / "scheduler_config.json"]
    if (path / "transformer").is_dir():
        schedulers = [path / "scheduler" / "scheduler_config.json"]
        path = path / "transformer"
    shift = _json(schedulers[0]).get("shift")
    for layout in names.WEIGHTS:
        index = names.index_of(path, layout)
        if index.is_file():
            listed = _json(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
                raise RfjaxError(f"{index} has no weight_map; fetch it again")
            files = sorted(set(listed.values()))
            if any(Path(file).name != file for file in files):
                raise ConfigError(f"{index} names files outside its folder; it cannot be trusted")
        else:
            files = [name for name in names.shard_names(layout, 1) if (path / name).is_file()]
        if files:
            paths = tuple(path / name for name in files)
            return FoundCheckpoint(path, paths, _json(path / names.MANIFEST), _json(path / "config.json"), shift, name)
    pickles = [file.name for file in path.iterdir() if file.suffix in names.PICKLES]
    others = sorted(file.name for file in path.glob("*.safetensors"))
    hint = f"; {pickles[0]} is a pickle and is not read" if pickles else ""
    hint += f"; it has {', '.join(others[:4])}: name the file" if others else ""
    raise ConfigError(f"{path} holds no {' or '.join(f'{stem}.safetensors' for stem in names.WEIGHTS.values())}{hint}")


def _json(path) -> dict:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RfjaxError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise RfjaxError(f"{path} holds {type(value).__name__}, not an object with fields; fetch it again")
    return value


def _layout(source, reader) -> tuple[Layout, str, dict[str, tuple[int, ...]]]:
    """(layout, prefix, shapes by name without the prefix)."""
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    kind = source.settings.get("_class_name", "SD3Transformer2DModel")
    if kind != "SD3Transformer2DModel":
        raise ConfigError(f"{source.path / 'config.json'} is of a {kind}; only SD3Transformer2DModel can be imported")
    if source.manifest:
        known = source.manifest.get("schema") == 1 and source.manifest.get("layout") in LAYOUTS
        if not known or not all(isinstance(source.manifest.get(part), dict) for part in ("config", "sha256")):
            path = names.manifest_of(source.path)
            raise ConfigError(f"{path} is no manifest that this version reads; remove it to import the tensors alone")
        layout = LAYOUTS[source.manifest["layout"]]
        prefix = layout.prefix
    else:
        layout, prefix = recognise(shapes)
    return layout, prefix, {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def _config(source, layout, found, base, overrides) -> Config:
    """The run's config, whose network is that of the tensors."""
    manifest = source.manifest.get("config")
    if layout.name == "plain":  # recognised by its manifest alone
        fixed = {f"model.{key}": value for key, value in manifest["model"].items()}
    else:
        network = network_of(layout, found, _head_size(source, base, overrides))
        fixed = {f"model.{key}": value for key, value in network.model.items()}
        fixed |= {f"data.{key}": value for key, value in network.data.items()}
    config = base or schema.from_dict(manifest or _foreign(source, network))
    if overrides.get("data.corpus", config.data.corpus) != config.data.corpus:
        config = dataclasses.replace(config, data=DataConfig())  # one corpus's sizes mean nothing to another
    config = schema.apply_overrides(config, overrides)
    have = schema.flatten(config)
    compared = {**have, "model.hidden": config.model.width}
    wrong = [
        f"config.{key} is {have[key]} and should be {value}"
        for key, value in fixed.items()
        if (key.startswith("model.") or config.data.corpus == "random") and compared[key] != value
    ]
    if wrong:
        raise ConfigError(f"the config does not fit the tensors of {source.path}: {', '.join(wrong)}")
    return config


def _head_size(source, base, overrides) -> int | None:
    """The head size by the manifest, else by config.json, else by the config; None where none says it."""
    given = base
    if "model.head_size" in overrides:
        given = schema.apply_overrides(Config(), {"model.head_size": overrides["model.head_size"]})
    manifest = source.manifest.get("config", {}).get("model", {})
    sizes = (manifest.get("head_size"), source.settings.get("attention_head_dim"), given and given.model.head_size)
    return next((size for size in sizes if isinstance(size, int)), None)


def _foreign(source, network) -> dict:
    """The config of a foreign network: the corpus `random`, in the sizes that the network was trained on."""
    tokens, span = RELEASED_POSITIONS
    patch, grid = network.model["patch_size"], network.model["position_grid"]
    if grid < tokens:
        tokens, span = grid, float(grid)
    side = source.settings.get("sample_size") or tokens * patch
    released = network.data["context_size"] == 4096
    return {
        "name": source.name,
        "model": {**network.model, "position_tokens": tokens, "position_span": span},
        "data": {**network.data, "corpus": "random", "image_size": side, "context_tokens": 154 if released else 77},
        "timestep_shift": float(source.shift or (3.0 if released else 1.0)),
        "evaluation": {"geneval": {"prompts_per_task": 0}},
    }


def _check_data(config, layout, found, shapes: BatchShapes) -> None:
    """Raises `ConfigError` where the corpus has other sizes than the network's inputs."""
    if layout.name == "plain":
        return  # `compare` finds other sizes
    network = network_of(layout, found, config.model.head_size).data
    given = {"channels": shapes.latents[2], "context_size": shapes.context[1], "pooled_size": shapes.pooled}
    wrong = [f"{key} is {given[key]} there and {network[key]} here" for key in given if given[key] != network[key]]
    if wrong:
        corpus = f"the corpus {config.data.corpus} does not fit this network: {', '.join(wrong)}"
        raise ConfigError(f"{corpus}; choose another with --config.data.corpus")


class _Verified:
    """Tensors by name, each compared with the manifest's checksum where there is one."""

    def __init__(self, reader, prefix, layout, manifest):
        self._reader, self._prefix = reader, prefix
        self._sha256 = {name.removeprefix(layout.prefix): value for name, value in manifest.get("sha256", {}).items()}

    def __call__(self, name):
        array = self._reader.read(self._prefix + name)
        if self._sha256 and self._sha256.get(name) != sha256_of(array):
            raise RfjaxError(
                f"{name} is not what was exported: its checksum differs; fetch the checkpoint again, or, if it was "
                f"trained on, remove {names.MANIFEST} and give --config"
            )
        if not np.isfinite(array).all():
            raise ConfigError(f"{name} holds numbers that are not finite; take another checkpoint")
        return array


def _parameters(layout, config, ours, get, stored):
    """The nested tree of float32 parameters; one module's tensors at a time are in memory beside it."""
    leaves = {leaf: np.empty(shape, np.float32) for leaf, shape in ours.items() if leaf != POSITIONS}
    entries = sources(layout, config.model, ours)
    for source in tqdm(entries, desc="import", unit="array", disable=None, leave=False):
        tensors = [get(name.removeprefix(layout.prefix)) for name in source.names]
        target = leaves[source.leaf]
        whole = target if source.layer is None else target[source.layer]
        whole[...] = source.transform.back(source.leaf.rsplit("/", 1)[1], tensors, whole.shape)
    if stored is not None:
        leaves[POSITIONS] = stored
    tree: dict = {}
    for leaf, array in leaves.items():
        *parents, last = leaf.split("/")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = jnp.asarray(array)
    return tree


def _write_run(run, source, params) -> None:
    """Writes the run's folder under another name, and moves it when whole."""
    manifest = source.manifest
    spent = {name: manifest.get(name, 0) for name in ("images", "flops")}
    parent = {"path": str(source.path.absolute()), "run": manifest.get("run", source.name)}
    parent |= {"step": manifest.get("step", 0), **spent}
    needed = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))  # raw and average
    with folder_moved_when_whole(run.workdir) as temporary:
        free = shutil.disk_usage(temporary).free
        if free < needed:
            sizes = f"{needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free"
            raise RfjaxError(f"{run.workdir} needs {sizes}; make room first")
        facts = {"schema": 1, "step": 0, **spent, "train_seconds": manifest.get("train_seconds", 0.0)}
        with checkpoint.Checkpoints(temporary, keep_last=1, kept=lambda step: False) as saving:
            saving.save(checkpoint.Weights(params, params), 0, facts | {"weights_alone": True})
        run_folder.write_json(temporary / "run.json", describe(run, parent) | {"step": 0})
        run_folder.write_json(temporary / "config.json", schema.to_dict(run.config))
