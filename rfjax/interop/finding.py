"""Finds a checkpoint's files of weights on disk, and its JSON files, which lie beside the weights, in the folder above
or in a subfolder of either.

This module reads no file but JSON. It notes each choice that it makes among several files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.json_files import read_json
from rfjax.interop import names
from rfjax.interop.scheduler import FILE as SCHEDULER
from rfjax.interop.scheduler import Scheduler, read_scheduler

_NETWORK = "transformer"  # the folder of the network inside a pipeline's folder
_INDEX = "model_index.json"
_FETCH = "fetch it again, or remove it"
_SHOWN = 4
# Between a stem and .safetensors there may be a variant, a shard's number, or both in either order.
_PARTS = re.compile(r"(?:\.(?P<before>[\w-]+?))?(?:-(?P<shard>\d{5})-of-(?P<count>\d{5}))?(?:\.(?P<after>[\w-]+))?$")


class Manifest(TypedDict, total=False):
    """The content of rfjax.json, which an export writes."""

    schema: int
    layout: str
    dtype: str
    run: str
    step: int
    weights: str
    images: int
    flops: float
    train_seconds: float
    config: dict[str, object]
    sha256: dict[str, str]


class Index(TypedDict):
    """The index of a checkpoint in several files."""

    weight_map: dict[str, str]


class FoundCheckpoint(NamedTuple):
    """The files of a checkpoint on disk, and the JSON beside them."""

    path: Path
    files: tuple[Path, ...]
    manifest: Manifest  # written by `rfjax export`; empty for a foreign checkpoint
    settings: Mapping[str, object]  # diffusers' config.json; empty if there is none
    settings_path: Path | None = None
    scheduler: Scheduler | None = None
    name: str = ""
    weight_map: Mapping[str, str] = {}  # tensor's name -> file's name, from the index of several files
    notes: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[Path, ...]:
        """Returns the paths of the config.json and the scheduler_config.json, each if its settings are used."""
        scheduler = (self.scheduler.path,) if self.scheduler else ()
        return ((self.settings_path,) if self.settings_path else ()) + scheduler


def find(path: Path) -> FoundCheckpoint:
    """Finds the files of a checkpoint. `path` is the checkpoint's folder, a pipeline's folder, a folder that holds one
    pipeline, or a file of weights.

    Raises `ConfigError`, naming what is there, if `path` holds no checkpoint or more than one. Raises `RfjaxError` for
    damaged JSON.
    """
    if path.suffix.lower() in names.PICKLES:
        raise ConfigError(f"{path} is a pickle, which can run any code; get the same weights as safetensors")
    if path.suffix.lower() == ".gguf":
        raise ConfigError(
            f"{path} is GGUF, whose weights are quantised; get the same weights in bfloat16 as safetensors"
        )
    if path.is_file() and path.suffix.lower() not in names.SAFETENSORS:
        raise ConfigError(f"{path} is no safetensors file; name a folder with such files, or one of them")
    if path.is_file():
        return _one_file(path)
    if not path.is_dir():
        hub = f"; rfjax fetches nothing: hf download {path} does" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) else ""
        raise ConfigError(f"no file or folder at {path}; name a folder with safetensors files, or one such file{hub}")
    if (path / "run.json").is_file() and (path / "checkpoints").is_dir():
        raise ConfigError(
            f"{path} is already a run of rfjax; resume it, or start another run from it with --init={path}"
        )
    return _folder(path)


def _one_file(path: Path) -> FoundCheckpoint:
    """Finds the checkpoint of a file that the user named. If the file has a usual name (`names.WEIGHTS`), and also
    either is one of several shards or lies beside a `config.json` or `rfjax.json`, the whole folder's checkpoint is
    meant. Otherwise the file alone is the checkpoint."""
    folder = path.parent
    for stem in names.WEIGHTS.values():
        parsed = _parse(path.name, stem)
        if parsed is not None and (
            parsed[1] or any((folder / name).is_file() for name in ("config.json", names.MANIFEST))
        ):
            return _folder(folder, wanted=parsed[0])  # the JSON beside it says more than the tensors do
    manifest = _manifest(names.manifest_of(path))
    notes: list[str] = []
    settings, settings_path = _settings_near(folder)
    # In a folder of many models config.json may be another model's: it is used only if it is an SD3 transformer's.
    if settings.get("_class_name") != "SD3Transformer2DModel":
        notes += [f"{settings_path} is not of an SD3Transformer2DModel and was not used"] if settings_path else []
        settings, settings_path = {}, None
    scheduler = _scheduler(folder)
    return FoundCheckpoint(path, (path,), manifest, settings, settings_path, scheduler, path.stem, {}, tuple(notes))


def _settings_near(folder: Path) -> tuple[dict, Path | None]:
    """Returns (settings, path) of the config.json in `folder` or, if it has none, in its subfolder `transformer`.
    Without a config.json the settings are empty and the path is None."""
    for path in (folder / "config.json", folder / _NETWORK / "config.json"):
        if path.is_file():
            return read_json(path, remedy=_FETCH), path
    return {}, None


def _folder(path: Path, wanted: str | None = None) -> FoundCheckpoint:
    """Finds the checkpoint in a folder of weights or of a pipeline. `wanted` is the variant; None takes the files
    without a variant or, if there are none, the only variant."""
    path, name, notes = _down(path)
    for layout, stem in names.WEIGHTS.items():
        chosen = _choose(path, layout, stem, wanted)
        if chosen is None:
            continue
        files, weight_map, more = chosen
        config = path / "config.json"
        settings = read_json(config, remedy=_FETCH) if config.is_file() else {}
        manifest = _manifest(path / names.MANIFEST)
        paths = tuple(path / file for file in files)
        if (
            layout == "plain" and manifest.get("layout") == "plain"
        ):  # config.json is for PyTorch: the manifest says more
            settings = {}
        used = config if settings else None
        more += _unread(path, stem)
        return FoundCheckpoint(
            path, paths, manifest, settings, used, _scheduler(path), name, weight_map, (*notes, *more)
        )
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in names.PICKLES)
    others = sorted(file.name for file in path.iterdir() if file.suffix in names.SAFETENSORS)
    hint = f"; {pickles[0]} is a pickle and is not read" if pickles else ""
    hint += f"; it has {', '.join(others[:_SHOWN])}: name the file" if others else ""
    if (path.parent / _INDEX).is_file():
        hint += f"; the pipeline's folder is {path.parent}: name that"
    raise ConfigError(f"{path} holds no {' or '.join(f'{stem}.safetensors' for stem in names.WEIGHTS.values())}{hint}")


def _unread(path: Path, stem: str) -> list[str]:
    """Returns a note on a folder's safetensors files that are not named after `stem`; [] if there are none."""
    files = sorted(file.name for file in path.iterdir() if file.suffix in names.SAFETENSORS)
    others = [file for file in files if _parse(file, stem) is None]
    return [f"beside {stem} these were not read: {', '.join(others[:_SHOWN])}"] if others else []


def _down(path: Path) -> tuple[Path, str, list[str]]:
    """Returns (the network's folder, the checkpoint's name, notes). `path` is the network's folder, the folder of its
    pipeline, or a folder that holds one pipeline. Raises `ConfigError` if `path` holds several pipelines."""
    if (path / _NETWORK).is_dir():
        return path / _NETWORK, path.name, []
    if _has_weights(path):
        named = path.parent.name if path.name == _NETWORK and (path.parent / _INDEX).is_file() else path.name
        return path, named, []
    inner = [part for part in _folders(path) if (part / _NETWORK).is_dir()]
    inner += [part for part in _folders(path / "snapshots") if (part / _NETWORK).is_dir()]  # Hugging Face's cache
    if len(inner) > 1:
        listed = ", ".join(part.name for part in inner[:_SHOWN])
        raise ConfigError(f"{path} holds {len(inner)} pipelines ({listed}); name one of them")
    if inner:
        return inner[0] / _NETWORK, inner[0].name, [f"the pipeline in {inner[0]} was taken"]
    return path, path.name, []


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(part for part in path.iterdir() if part.is_dir() and not part.name.startswith("."))


def _has_weights(path: Path) -> bool:
    found = [file.name for file in path.iterdir() if file.suffix in names.SAFETENSORS]
    return any(_parse(name, stem) for name in found for stem in names.WEIGHTS.values()) or any(
        path.glob("*.safetensors.index*.json")
    )


def _parse(name: str, stem: str) -> tuple[str, int] | None:
    """Returns (variant, number of shards) from the name of a file of weights: "" is no variant, 0 no shard's number.
    Returns None for other names."""
    end = next((end for end in names.SAFETENSORS if name.endswith(end)), None)
    if end is None or not name.startswith(stem):
        return None
    match = _PARTS.match(name[len(stem) : -len(end)])
    if match is None:
        return None
    return match["before"] or match["after"] or "", int(match["count"] or 0)


def _choose(path: Path, layout: str, stem: str, wanted: str | None):
    """Returns (files, weight map, notes) of the variant `wanted`; if `wanted` is None, of the files without a variant
    or, if there are none, of the only variant. Returns None if the folder has no file of the layout."""
    variants: dict[str, list[str]] = {}
    for file in sorted(path.iterdir()):
        parsed = _parse(file.name, stem)
        if parsed is not None and file.is_file():
            variants.setdefault(parsed[0], []).append(file.name)
    indices = {}
    for file in sorted(path.glob(f"{stem}*.index*.json")):
        kind = re.fullmatch(rf"{stem}(?:\.([\w-]+))?\.safetensors\.index(?:\.([\w-]+))?\.json", file.name)
        if kind:
            indices[kind[1] or kind[2] or ""] = file
            variants.setdefault(kind[1] or kind[2] or "", [])
    if not variants:
        return None
    variant = wanted if wanted is not None else "" if "" in variants else next(iter(variants))
    others = sorted(set(variants) - {variant})
    if wanted is None and variant and others:
        raise ConfigError(f"{path} holds the variants {', '.join(sorted(variants))}; name a file of one of them")
    notes = [f"the variant {variant} was taken: {', '.join(variants[variant][:_SHOWN])}"] if variant else []
    if others:
        said = ", ".join(other or "without a variant" for other in others)
        notes.append(f"other weights in {path} were not read: {said}")
    files = variants[variant]
    whole = [name for name in files if not _parse(name, stem)[1]]
    shards = [name for name in files if _parse(name, stem)[1]]
    if variant in indices:
        index = indices[variant]
        weight_map = read_json(index, Index, remedy="fetch it again")["weight_map"]
        listed = sorted(set(weight_map.values()))
        if not listed:
            raise RfjaxError(f"{index} has an empty weight_map; fetch it again")
        if any(Path(file).name != file or file in ("", ".", "..") for file in listed):
            raise ConfigError(
                f"{index} names files outside its folder, so it cannot be trusted; fetch it from its publisher again"
            )
        missing = [file for file in listed if not (path / file).is_file()]
        if missing:
            raise ConfigError(
                f"{path / missing[0]} is missing, one of {len(missing)} of {len(listed)} files that {index.name} "
                "names; get all files of the checkpoint, then import again"
            )
        unlisted = sorted(set(files) - set(listed))
        if unlisted:
            notes.append(f"files that {index.name} does not name were not read: {', '.join(unlisted[:_SHOWN])}")
        return listed, weight_map, notes
    if whole:
        if shards:
            notes.append(f"{len(shards)} shards beside {whole[0]} were not read: {', '.join(shards[:_SHOWN])}")
        if whole[1:]:
            notes.append(f"beside {whole[0]} these were not read: {', '.join(whole[1:])}")
        return whole[:1], {}, notes
    counts = {_parse(name, stem)[1] for name in shards}
    if len(counts) > 1 or len(shards) != max(counts):
        raise ConfigError(
            f"{path} holds {len(shards)} shards of {' or '.join(map(str, sorted(counts)))} and no index; get all files "
            "of the checkpoint, then import again"
        )
    notes.append(f"there is no index: all {len(shards)} shards were read")
    return shards, {}, notes


def _scheduler(folder: Path) -> Scheduler | None:
    """Reads the sampler's settings from the folder of the pipeline in which the weights lie or, if there are none, from
    the folder of the weights; None if neither has settings."""
    above = [folder.parent] if folder.name == _NETWORK or (folder.parent / _INDEX).is_file() else []
    for base in (*above, folder):
        for path in (base / "scheduler" / SCHEDULER, base / SCHEDULER):
            if path.is_file():
                return read_scheduler(path)
    return None


def _manifest(path: Path) -> Manifest:
    if not path.is_file():
        return {}
    return read_json(path, Manifest, remedy="fetch it again, or remove it to import the tensors alone")
