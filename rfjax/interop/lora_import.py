"""Makes a tuned run from a file of LoRA factors and the run that they adapt: the inverse of `lora_files`.

The file has the names of PEFT and diffusers: `NAME.lora_A.weight` [rank, inputs] and `NAME.lora_B.weight` [outputs,
rank] for linear maps of SD3Transformer2DModel, under `transformer.`, `base_model.model.` or no prefix. A map's product
B A is multiplied by alpha / rank; alpha is the tensor `NAME.alpha`, else the alpha in PEFT's settings (in the file's
metadata, or in adapter_config.json beside it), else the rank. Here the factor alpha / rank is folded into B, so the
tuned run's scale is 1.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rfjax import config as schema
from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError
from rfjax.files import folder_moved_when_whole, remove_left_behind
from rfjax.inputs.json_files import WrongJson, parse_json, read_json
from rfjax.inputs.paths import local_path
from rfjax.interop import expressible
from rfjax.interop.exporting import parameter_shapes
from rfjax.interop.layouts import DIFFUSERS, LeafPart, sources
from rfjax.interop.safetensors_files import Reader
from rfjax.interop.transforms import Linear
from rfjax.models.lora import matrix_axes, matrix_shape
from rfjax.outputs import check_output
from rfjax.training import adapted, checkpoint, lineage, run_folder
from rfjax.training.run import check_record, describe, plan_run, read_config

SETTINGS, METADATA = "adapter_config.json", "lora_adapter_metadata"  # PEFT's file, and diffusers' key of metadata
PREFIXES = r"(?:base_model\.model\.)?(?:transformer\.)?"
KEY = re.compile(PREFIXES + r"(?P<map>.+?)\.(?P<part>lora_A|lora_B|lora\.down|lora\.up)(?:\.default)?\.weight")
ALPHA = re.compile(PREFIXES + r"(?P<map>.+?)(?:\.lora(?:_A|_B)?)?\.alpha")
PARTS = {"lora_A": "a", "lora.down": "a", "lora_B": "b", "lora.up": "b"}
PLAIN = {"use_dora": False, "bias": "none"}  # PEFT's settings of an adapter that is only a product of two factors
# PEFT's ways to begin an adapter that leave the network as it is. Others (pissa, olora, corda, loftq) also change the
# network's own weights, which the file does not hold.
BEGUN, BEGUN_KEY = (True, False, None, "gaussian", "eva", "orthogonal"), "init_lora_weights"
First, Second = Float[np.ndarray, "inputs rank"], Float[np.ndarray, "rank outputs"]  # a and b of a map
Factors = dict[str, np.ndarray]


@dataclass(frozen=True)
class ImportedAdapter:
    """What was read: the number of adapted maps, their ranks, and where their alphas come from."""

    base: Path
    step: int
    maps: int
    of: int  # number of the network's linear maps, without the patch embedding
    ranks: tuple[int, ...]
    alphas: str

    def lines(self, out: Path) -> list[str]:
        """Lines for a console."""
        ranks = ", ".join(map(str, self.ranks))
        return [
            f"an adapter of {self.maps} of {self.of} linear maps, rank {ranks}; alpha: {self.alphas}",
            f"imported: {out}, a tuned run of step {self.step} of {self.base}, which must stay where it is",
            f"sample from it: rfjax sample {out}; merge it: rfjax export {out} --format diffusers --out FOLDER",
        ]


def import_adapter(file: Path, base: str, out: Path, *, weights: str = "ema") -> ImportedAdapter:
    """Makes the tuned run `out` at step 0 from a file of factors. `base` is `RUN@STEP`, or `RUN` for its newest
    checkpoint; the factors are taken to adapt its `weights`, ema or raw.

    Raises `ConfigError`, naming the tensor, for a key that is not a factor of a linear map of the run's network, a
    factor whose shape does not fit its map, two factors of unlike rank, and a number that is not finite. Also raises it
    if PEFT's settings are of an adapter that is more than a product of two factors. Nothing is left behind after an
    error.
    """
    file, out = local_path(file, "SOURCE"), local_path(out, "out")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or name another with --out")
    check_output(out, "--out")
    remove_left_behind(out.parent)
    parent = lineage.read_parent(base, "--base")
    folder = Path(parent.path)
    run = plan_run(read_config(folder), folder)
    check_record(run)
    expressible.check("diffusers", run.config, run.corpus.shapes)
    with Reader([file]) as reader:
        settings, where = _settings(file, reader.metadata)
        tree, maps, ranks, alphas = read_factors(reader, file, run.config.model, run.corpus.shapes, settings)
    total = sum(1 for _ in _maps(run.config.model, run.corpus.shapes))
    found = ImportedAdapter(folder, parent.step, maps, total, ranks, where if alphas is None else alphas)
    facts = adapted.describe(folder, parent.step, weights, out, max(ranks), float(max(ranks)))
    record = describe(plan_run(run.config, out), dict(parent._asdict())) | {"role": "tuned", "step": 0}
    record |= {"adapter": facts, "imported": {"files": [str(file)], "maps": maps, "alpha": found.alphas}}
    spent = {"images": parent.images, "flops": parent.flops, "train_seconds": 0.0}
    with folder_moved_when_whole(out) as temporary:
        with checkpoint.Checkpoints(temporary, keep_last=1, kept=lambda step: False) as saving:
            weights_alone = {"schema": 1, "step": 0, **spent, "weights_alone": True}
            saving.save(checkpoint.Weights(tree, tree), 0, weights_alone)
        run_folder.write_json(temporary / "run.json", record)
        run_folder.write_json(temporary / "config.json", schema.to_dict(run.config))
    return found


def read_factors(
    reader: Reader, file: Path, model: ModelConfig, shapes: BatchShapes, settings: Mapping[str, object]
) -> tuple[dict, int, tuple[int, ...], str | None]:
    """Returns (the adapter with scale 1, the number of maps in the file, the ranks of the adapter's kernels, where the
    alphas come from). The last is None if the file has no keys of alphas: then `_settings` says where."""
    known = dict(_maps(model, shapes))
    names, alphas = _sort(reader, file, known)
    leaves: dict[str, dict[tuple, tuple[First, Second]]] = {}
    for name, keys in names.items():
        part, number = known[name]
        leaves.setdefault(part.leaf, {})[part.layer, number] = _read_map(
            reader, file, name, keys, alphas, settings, part, number
        )
    ours, tree = parameter_shapes(model, shapes), {}
    ranks = set()
    for leaf, maps in leaves.items():
        factors = _stack(ours[leaf], leaf, maps)
        ranks.add(factors["a"].shape[-1])
        node = tree
        for step in leaf.split("/"):
            node = node.setdefault(step, {})
        node |= {name: jnp.asarray(array) for name, array in factors.items()}
    return tree, len(names), tuple(sorted(ranks)), "the file's keys" if alphas else None


def _maps(model: ModelConfig, shapes: BatchShapes):
    """Yields (name in diffusers, (part, number)) for every linear map that an adapter can change: `part` is the
    `LeafPart` of rfjax's parameters with the map, and `number` the map's index in it."""
    for part in sources(DIFFUSERS, model, parameter_shapes(model, shapes)):
        if part.leaf.endswith("/kernel") and matrix_axes(part.leaf) is not None:
            for number, name in enumerate(part.names):
                yield name.removesuffix(".weight"), (part, number)


def _sort(reader, file, known) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Sorts a file's keys. Returns ({linear map: {"a": key, "b": key}}, {linear map: alpha}). Raises `ConfigError` for
    a key that is neither a factor nor an alpha."""
    names: dict[str, dict[str, str]] = {}
    alphas: dict[str, float] = {}
    for key in reader.tensors:
        match, alpha = KEY.fullmatch(key), ALPHA.fullmatch(key)
        name = (match or alpha or {"map": key})["map"]
        if not (match or alpha) or name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.8)
            hint = f"; the nearest name is {near[0]}" if near and (match or alpha) else ""
            raise ConfigError(
                f"{file} has the tensor {key}, which is no factor of a linear map of this network{hint}; give a file "
                "of PEFT or diffusers for SD3Transformer2DModel with factors of linear maps alone"
            )
        if alpha:
            alphas[name] = float(np.asarray(reader.read(key), np.float64).reshape(-1)[0])
        elif (part := PARTS[match["part"]]) in names.setdefault(name, {}):
            raise ConfigError(f"{file} has {names[name][part]} and {key}, two tensors of one factor; remove one")
        else:
            names[name][part] = key
    for name, keys in names.items():
        if len(keys) < 2:
            lacking = "lora_B" if "a" in keys else "lora_A"
            raise ConfigError(
                f"{file} has {next(iter(keys.values()))} and no {name}.{lacking}.weight; get the whole file"
            )
    if not names:
        raise ConfigError(f"{file} has no factors; give a file with NAME.lora_A.weight and NAME.lora_B.weight")
    if alone := sorted(alphas.keys() - names.keys()):
        raise ConfigError(f"{file} has an alpha of {alone[0]} and no factors of it; get the whole file")
    return names, alphas


def _read_map(reader, file, name, keys, alphas, settings, part: LeafPart, number: int) -> tuple[First, Second]:
    """Reads the factors of one linear map. Returns (a [inputs, rank], b [rank, outputs]) with rfjax's order of inputs
    and outputs, and with alpha / rank folded into b."""
    first, second = (np.asarray(reader.read(keys[half]), np.float32) for half in "ab")
    outputs, inputs = part.shapes[number]
    for key, tensor, axis, side in ((keys["a"], first, 1, inputs), (keys["b"], second, 0, outputs)):
        what = "inputs" if axis else "outputs"
        if tensor.ndim != 2 or tensor.shape[axis] != side:
            raise ConfigError(
                f"{key} in {file} has the shape {list(tensor.shape)}, and the run's map has {side} {what}; give an "
                "adapter of a network of this width"
            )
        if not np.isfinite(tensor).all():
            raise ConfigError(f"{key} in {file} has a number that is not finite; get the file again")
    rank = len(first)
    if second.shape[1] != rank or not rank:
        raise ConfigError(
            f"{keys['a']} in {file} has rank {rank}, and {keys['b']} {second.shape[1]}; get the file again"
        )
    scale = np.float32(_scale(file, name, rank, alphas, settings))
    ordered = Linear(swapped=part.transform.swapped)
    b = ordered.back("kernel", [second if scale == 1 else scale * second], (rank, outputs))
    return _without_filling(first.T, b)


def _scale(file, name, rank, alphas, settings) -> float:
    """Returns alpha / rank of a map; with PEFT's rank-stabilised LoRA, alpha / sqrt(rank)."""
    alpha = alphas.get(name)
    if alpha is None:
        patterns = settings.get("alpha_pattern") or {}
        named = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)), None)
        alpha = settings.get("lora_alpha", rank) if named is None else named
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ConfigError(f"{file} gives {name} the alpha {alpha!r}; it must be a positive number: get the file again")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _without_filling(a: First, b: Second) -> tuple[Float[np.ndarray, "inputs used"], Float[np.ndarray, "used outputs"]]:
    """Returns (a, b) without the last ranks, those whose column of a and row of b are all zeros: some files fill all
    factors with zeros up to one rank. At least one rank is kept."""
    used = np.flatnonzero(np.any(a, axis=0) | np.any(b, axis=1))
    rank = max(1, int(used[-1]) + 1) if len(used) else 1
    return a[:, :rank], b[:rank]


def _stack(shape, leaf, maps) -> Factors:
    """Returns the factors of a kernel, [maps..., inputs, rank] and [maps..., rank, outputs], with the largest rank of
    its maps. They are zero for a map that is not in the file."""
    whole = matrix_shape(shape, matrix_axes(leaf))
    rank = max(a.shape[1] for a, _ in maps.values())
    inputs, outputs = whole.sides
    made = {
        "a": np.zeros((*whole.maps, inputs, rank), np.float32),
        "b": np.zeros((*whole.maps, rank, outputs), np.float32),
    }
    for (layer, number), (a, b) in maps.items():
        place = (() if layer is None else (layer,)) + ((number,) if whole.apart else ())
        made["a"][(*place, slice(None), slice(a.shape[1]))] = a
        made["b"][(*place, slice(b.shape[0]))] = b
    return made


def _settings(file: Path, metadata: Mapping[str, str]) -> tuple[dict[str, object], str]:
    """Returns (PEFT's settings of an adapter, the words with which messages say where they were found). The settings
    are empty if there are none. "transformer." before a setting's name, as a pipeline writes it, is removed. Raises
    `ConfigError` if the adapter is more than a product of two factors, or is added to changed weights."""
    beside = file.parent / SETTINGS
    if METADATA in metadata:
        where = f"the metadata of {file}"
        try:
            found = parse_json(metadata[METADATA], dict[str, object])
        except WrongJson as problem:
            raise ConfigError(f"{where} has {METADATA} that cannot be read: {problem}; get the file again") from None
    elif beside.is_file():
        where, found = str(beside), read_json(beside, error=ConfigError)
    else:
        return {}, "the rank, since nothing gives it"
    found = {name.removeprefix("transformer."): value for name, value in found.items()}
    for name, plain in PLAIN.items():
        if found.get(name, plain) not in (plain, None):
            raise ConfigError(
                f"{where} has {name} {json.dumps(found[name])}; only adapters with {json.dumps(plain)} are read"
            )
    if (begun := found.get(BEGUN_KEY)) not in BEGUN:
        raise ConfigError(
            f"{where} has {BEGUN_KEY} {json.dumps(begun)}, which can change the network's own weights; convert it to a "
            "plain adapter (in PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return found, where
