"""Makes a run from a PyTorch checkpoint, to train further, to sample from or to evaluate.

Only safetensors are read. A pickle can run any code, and is refused unread.
"""

from __future__ import annotations

import dataclasses
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
from rfjax.files import folder_moved_when_whole, remove_left_behind
from rfjax.inputs.paths import local_path
from rfjax.interop import names
from rfjax.interop.exporting import formula_positions, parameter_shapes
from rfjax.interop.finding import find
from rfjax.interop.keys import Networks, describe_groups, find_networks, groups_of
from rfjax.interop.layouts import LAYOUTS, sources, tensor_shapes
from rfjax.interop.recognise import compare, has_released_sizes, network_of
from rfjax.interop.safetensors_files import Reader, sha256_of
from rfjax.interop.scheduler import choose_shift
from rfjax.interop.settings import check_class, check_settings
from rfjax.models.positions import POSITIONS
from rfjax.outputs import check_output
from rfjax.training import checkpoint, run_folder
from rfjax.training.run import describe, plan_run

# (position_tokens, position_span) of the released models: 1024 px spans [0, 16) (SD3 section 5.3.2).
RELEASED_POSITIONS = (64, 16.0)


class Imported(NamedTuple):
    """The imported network, and what a user should know about it."""

    config: Config
    layout: str
    params: int
    ignored: int  # number of tensors left out: an autoencoder's, text encoders' and so on
    notes: tuple[str, ...]
    left_out: Mapping[str, int]  # first part of the name -> number of tensors left out
    files: tuple[Path, ...]  # the files read: weights, config.json, scheduler_config.json
    has_average: bool  # whether the checkpoint holds averaged weights beside the raw ones

    def record(self) -> dict[str, object]:
        """Returns what run.json keeps of the import."""
        return {
            "layout": self.layout,
            "files": [str(path) for path in self.files],
            "left_out": dict(self.left_out),
            "has_average": self.has_average,
            "notes": list(self.notes),
        }


def import_checkpoint(
    path: Path, out: Path, *, base: Config | None = None, overrides: Mapping[str, object] = {}
) -> Imported:
    """Makes the run folder `out`, at step 0, from the checkpoint in `path`.

    If the checkpoint has no averaged weights, its weights become both the raw and the averaged ones. `base` gives the
    settings outside the network. By default the export's manifest gives them; without a manifest the run gets the
    corpus `random` in the network's sizes. Raises `ConfigError` for a checkpoint that is not recognised, and if `base`
    or `overrides` contradict the tensors. Raises `RfjaxError` for a damaged file. After an error no file is left
    behind.
    """
    out = local_path(out, "out")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or name another with --out")
    check_output(out, "--out")
    notes = remove_left_behind(out.parent)
    source = find(local_path(path, "path"))
    exported = _check_manifest(source)
    if source.settings:
        check_class(source.settings, source.settings_path)
    with Reader(source.files) as reader:
        notes += [*source.notes, *_check_index(source, reader)]
        networks = _networks(source, reader)
        notes += networks.notes
        layout, shapes_of = networks.layout, lambda stored: {n: reader.tensors[k].shape for n, k in stored.items()}
        found = shapes_of(networks.raw)
        config, guesses = _config(source, exported, layout, found, base, overrides)
        notes += guesses
        shapes = plan_run(config).corpus.shapes
        _check_data(config, layout, found, shapes)
        if config.model.positions == "rotary" and layout.name != "plain":
            given = f"config.model.positions is rotary, and the network of {source.path} adds its positions"
            raise ConfigError(f"{given}; set it to formula")
        ours = parameter_shapes(config.model, shapes)
        trained_on = exported.data.corpus if exported else None
        if trained_on not in (None, config.data.corpus):
            notes.append(f"it was trained on the corpus {trained_on}, whose words differ from {config.data.corpus}'s")
        expected = tensor_shapes(layout, config.model, ours)
        expected = {name.removeprefix(layout.prefix): shape for name, shape in expected.items()}
        compare(expected, found, str(source.path))
        if networks.average is not None:
            compare(expected, shapes_of(networks.average), f"the average (EMA) in {source.path}")
        _check_copies(reader, networks)
        get = _Verified(reader, networks.raw, layout, source.manifest)
        grid = None if config.model.positions == "rotary" else get(layout.positions)
        stored = None
        if grid is not None and not np.array_equal(formula_positions(config.model).astype(grid.dtype), grid):
            fields = "config.model.position_tokens and position_span"
            notes.append(f"its positions are not those of {fields}: they are kept (config.model.positions=stored)")
            model = {**schema.to_dict(config)["model"], "positions": "stored"}
            config = schema.from_dict({**schema.to_dict(config), "model": model})
            ours = parameter_shapes(config.model, shapes)
            stored = np.asarray(grid, np.float32).reshape(ours[POSITIONS])
        params = average = _parameters(layout, config, ours, get, stored)
        if networks.average is not None:
            get = _Verified(reader, networks.average, layout, {})
            average = _parameters(layout, config, ours, get, stored)
    run = plan_run(config, out)
    imported = Imported(
        config,
        layout.name,
        run.parameter_count,
        sum(networks.beside.values()),
        tuple(notes),
        networks.beside,
        (*source.files, *source.read),
        networks.average is not None,
    )
    _write_run(run, source, params, average, imported)
    return imported


def lines(imported: Imported, out: Path) -> list[str]:
    """Returns lines for a console: the imported network, and the commands that can follow."""
    model, notes = imported.config.model, list(imported.notes)
    dual = model.dual_attention_blocks
    network = f"{imported.layout} layout: depth {model.depth}, width {model.width}, {model.heads} heads"
    network += f", dual attention in the first {dual} blocks" if dual else ""
    if imported.ignored:
        groups = describe_groups(imported.left_out)
        notes.append(f"{imported.ignored} tensors beside the network were left out: {groups}")
    beside = [path.name for path in imported.files if path.suffix == ".json"]
    weights = len(imported.files) - len(beside)
    read = f"read: {weights} file{'s' if weights > 1 else ''} of weights, " + (", ".join(beside) or "no JSON beside it")
    return [
        network + (", QK-norm" if model.qk_norm else ""),
        f"{imported.params:,} parameters; corpus {imported.config.data.corpus}",
        f"{read}; timestep shift {imported.config.timestep_shift:g}",
        *(f"note: {text}" for text in notes),
        f"imported: {out}",
        f"train on:   rfjax train --config={out}/config.json --workdir={out}",
        f"or, with another config: rfjax train --config=FILE.py --workdir=NEW --init={out}",
    ]


def _networks(source, reader) -> Networks:
    """Finds the network among the tensors: by an export's manifest, else by the tensors' names."""
    if not source.manifest:
        return find_networks(reader.tensors)
    layout = LAYOUTS[source.manifest["layout"]]
    raw = {name.removeprefix(layout.prefix): name for name in reader.tensors if name.startswith(layout.prefix)}
    left = [name for name in reader.tensors if not name.startswith(layout.prefix)]
    return Networks(layout, raw, None, {}, groups_of(left), ())


def _check_manifest(source) -> Config | None:
    """Returns the config in an export's manifest; None if there is no manifest. Raises `ConfigError` for a manifest
    that this version cannot read."""
    held, path = source.manifest, names.manifest_of(source.path)
    if not held:
        return None
    known = held.get("schema") == 1 and held.get("layout") in LAYOUTS and "config" in held and "sha256" in held
    if not known:
        raise ConfigError(f"{path} is no manifest that this rfjax reads; remove it to import the tensors alone")
    try:
        return schema.from_dict(held["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; fetch it again, or remove it to import the tensors alone") from None


def _check_index(source, reader) -> list[str]:
    """Returns a note on the tensors that the index does not list, or no note. Raises `RfjaxError` if a tensor is not in
    the file that the index gives for it."""
    lost = sorted(
        name
        for name, file in source.weight_map.items()
        if name not in reader.tensors or reader.tensors[name].file.name != file
    )
    if lost:
        name, file = lost[0], source.weight_map[lost[0]]
        raise RfjaxError(
            f"{source.path / file} has no tensor {name}, though the index of {source.path} says so (of {len(lost)} "
            "tensors in all); fetch the index and the files again"
        )
    extra = sorted(set(reader.tensors) - set(source.weight_map)) if source.weight_map else []
    return [f"{len(extra)} tensors that the index does not name were read, such as {extra[0]}"] if extra else []


def _config(source, exported, layout, found, base, overrides) -> tuple[Config, list[str]]:
    """Returns (the run's config, notes on what was guessed). Raises `ConfigError` if the config's network is not that
    of the tensors."""
    network, notes = None, []
    if layout.name == "plain":  # recognised by its manifest alone
        fixed = {key: value for key, value in schema.flatten(exported).items() if key.startswith("model.")}
    else:
        head_size, notes = _head_size(source, exported, base, overrides)
        network = network_of(layout, found, head_size)
        if source.settings:
            outputs = found.get(f"{layout.outside['final/linear'].names[0]}.weight", (0,))[0]
            check_settings(source.settings, source.settings_path, network, outputs)
        fixed = {f"model.{key}": value for key, value in network.model.items()}
        fixed |= {f"data.{key}": value for key, value in network.data.items()}
    config = base or exported
    if config is None:
        values, guesses = _foreign(source, network)
        config, notes = schema.from_dict(values), notes + guesses
    if overrides.get("data.corpus", config.data.corpus) != config.data.corpus:
        config = dataclasses.replace(config, data=DataConfig())  # the sizes were the other corpus's
    config = schema.apply_overrides(config, overrides)
    have = schema.flatten(config)
    compared = {**have, "model.hidden": config.model.width}
    wrong = [
        f"config.{key} is {have[key]} and should be {value}"
        for key, value in fixed.items()
        if (key.startswith("model.") or config.data.corpus == "random") and compared[key] != value
    ]
    if wrong:
        raise ConfigError(
            f"the config does not fit the tensors of {source.path}: {', '.join(wrong)}; correct these fields"
        )
    is_foreign = base is None and exported is None
    shift_is_given = "timestep_shift" in overrides
    config, said = choose_shift(config, source.scheduler, is_foreign, shift_is_given, has_released_sizes(network))
    return config, notes + said


def _head_size(source, exported, base, overrides) -> tuple[int | None, list[str]]:
    """Returns (head size, notes). The size is the manifest's, else config.json's, else that of `overrides` or `base`,
    else 64 if there is a config.json, else None."""
    given = base
    if "model.head_size" in overrides:
        given = schema.apply_overrides(Config(), {"model.head_size": overrides["model.head_size"]})
    settings = source.settings
    if exported:
        return exported.model.head_size, []
    if "attention_head_dim" in settings:
        return settings["attention_head_dim"], []
    if given:
        return given.model.head_size, []
    if settings:
        said = f"{source.settings_path} has no attention_head_dim: taken as 64, diffusers' default"
        return 64, [said]
    return None, []


def _foreign(source, network) -> tuple[dict, list[str]]:
    """Returns (config, notes) for a foreign network. The config has the corpus `random` in the network's sizes."""
    tokens, span = RELEASED_POSITIONS
    patch, grid = network.model["patch_size"], network.model["position_grid"]
    if grid < tokens:
        tokens, span = grid, float(grid)
    side, notes = source.settings.get("sample_size"), []
    if side is None:
        side = tokens * patch
        notes.append(f"nothing says the size of its latents: taken as {side} (config.data.image_size)")
    return {
        "name": source.name,
        "model": {**network.model, "position_tokens": tokens, "position_span": span},
        "data": {
            **network.data,
            "corpus": "random",
            "image_size": side,
            "context_tokens": 154 if has_released_sizes(network) else 77,
        },
        "evaluation": {"geneval": {"prompts_per_task": 0}},
    }, notes


def _check_data(config, layout, found, shapes: BatchShapes) -> None:
    """Raises `ConfigError` if the corpus's sizes differ from those of the network's inputs."""
    if layout.name == "plain":
        return  # `compare` finds sizes that differ
    network = network_of(layout, found, config.model.head_size).data
    given = {"channels": shapes.latents[-1], "context_size": shapes.context[1], "pooled_size": shapes.pooled}
    wrong = [
        f"{key} is {given[key]} in the corpus and {network[key]} in the network"
        for key in given
        if given[key] != network[key]
    ]
    if wrong:
        corpus = f"the corpus {config.data.corpus} does not fit the checkpoint's network: {', '.join(wrong)}"
        raise ConfigError(f"{corpus}; give --config.data.corpus=NAME of one that fits")


class _Verified:
    """Reads a tensor by name; checks that its numbers are finite, and its checksum if the manifest has one."""

    def __init__(self, reader, stored, layout, manifest):
        self._reader, self._stored = reader, stored
        self._sha256 = {name.removeprefix(layout.prefix): value for name, value in manifest.get("sha256", {}).items()}

    def __call__(self, name):
        array = self._reader.read(self._stored[name])
        if self._sha256 and self._sha256.get(name) != sha256_of(array):
            raise RfjaxError(
                f"{name} is not what was exported: its checksum differs; fetch the checkpoint again, or, if it was "
                f"trained on, remove {names.MANIFEST} and give --config"
            )
        if not np.isfinite(array).all():
            raise ConfigError(f"{name} holds numbers that are not finite; take another checkpoint")
        return array


def _check_copies(reader, networks) -> None:
    """Raises `ConfigError` if the network's second copy, under another prefix, holds different numbers."""
    for name, kept in networks.same_as.items():
        first = networks.raw.get(name)
        if first is None or sha256_of(reader.read(first)) != sha256_of(reader.read(kept)):
            raise ConfigError(f"the file holds two networks: {kept} is not {first or name}; give a file with one")


def _parameters(layout, config, ours, get, stored):
    """Returns the nested tree of float32 parameters. Besides the tree, only one module's tensors are in memory at a
    time."""
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


def _write_run(run, source, params, average, imported) -> None:
    """Writes the run's folder under a temporary name, and renames it when it is complete."""
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
            saving.save(checkpoint.Weights(params, average), 0, facts | {"weights_alone": True})
        run_folder.write_json(
            temporary / "run.json", describe(run, parent) | {"step": 0, "imported": imported.record()}
        )
        run_folder.write_json(temporary / "config.json", schema.to_dict(run.config))
