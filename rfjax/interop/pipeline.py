"""Writes the parts of a `StableDiffusion3Pipeline` beside the network: the frozen models of the prepared corpus.

The frozen models' weights are hard-linked if the file system allows it, else copied. The autoencoder's config is
rewritten with the corpus's shift and scale.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TypedDict

from rfjax.config import Config
from rfjax.data.prepared import frozen, manifest, text_encoders
from rfjax.data.prepared.manifest import Manifest
from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json

INDEX = "model_index.json"
NEEDED = ("clip_l", "clip_g")  # the pipeline always encodes with both, in this order
KNOWN_AUTOENCODER = "AutoencoderKL"
WITH_PROJECTION = "CLIPTextModelWithProjection"
TOKENIZERS = {"clip": "CLIPTokenizer", "t5": "T5TokenizerFast"}  # used if tokenizer_config.json names no class
ABSENT = [None, None]
_REMEDY = "fetch the frozen models again"


class _TokenizerConfig(TypedDict, total=False):
    tokenizer_class: str | None


class _Index(TypedDict):
    weight_map: dict[str, str]


def check(config: Config, models: str | Path | None) -> tuple[Manifest, Path]:
    """Returns the corpus's manifest and the folder of its frozen models.

    Raises `ConfigError` if the run cannot be a pipeline, and if the frozen models are not those of the corpus.
    """
    if config.data.corpus != "prepared":
        raise ConfigError(
            f"config.data.corpus is {config.data.corpus}, which has no autoencoder and no text encoders; take a run "
            "on a prepared corpus, or leave --pipeline out"
        )
    found = manifest.read(config.data.prepared.path)
    names = _used(config, found)
    for name in NEEDED:
        if name not in names:
            raise ConfigError(
                f"{name} is not among the text encoders of the run ({', '.join(names)}), and StableDiffusion3Pipeline "
                "needs both CLIPs (it can leave out T5 alone); export without --pipeline"
            )
    for name in names:
        if name not in text_encoders.SLOTS:
            raise ConfigError(
                f"{name} is among the text encoders of the run ({', '.join(names)}), and StableDiffusion3Pipeline has "
                f"only {', '.join(text_encoders.SLOTS)}; export without --pipeline"
            )
    order = [encoder.name for encoder in found.encoders if encoder.kind == "clip"]
    if order != list(NEEDED):
        raise ConfigError(
            f"the corpus's CLIPs are in the order {', '.join(order)}, and StableDiffusion3Pipeline takes "
            f"{', '.join(NEEDED)}; export without --pipeline"
        )
    facts = found.facts["models"]
    if (model := facts["parts"][frozen.AUTOENCODER]["class"]) != KNOWN_AUTOENCODER:
        given = f"the autoencoder of {found.folder} is {model}, and StableDiffusion3Pipeline has an {KNOWN_AUTOENCODER}"
        raise ConfigError(f"{given}; export without --pipeline")
    for name in NEEDED:
        kind = facts["parts"][name]["class"]
        if kind != WITH_PROJECTION:
            raise ConfigError(
                f"{name} of the corpus is a {kind}, and StableDiffusion3Pipeline needs a {WITH_PROJECTION} for the "
                "pooled vector; export without --pipeline"
            )
    folder = Path(models or config.data.prepared.models or facts["folder"])
    if not folder.is_dir():
        raise ConfigError(f"the frozen models of {found.folder} are not in {folder}; name their folder with --models")
    for name in (frozen.AUTOENCODER, *names):
        part, tokenizer = _folders(name)
        here = frozen.find_model(folder, part, facts["variant"]).facts(folder, tokenizer)
        now, then = here["sha256"], facts["parts"][name]["sha256"]
        if now != then:
            raise ConfigError(
                f"{name} in {folder} is not what {found.folder} was prepared with: its files hash to {now[:12]}, not "
                f"{then[:12]}; name the folder used then with --models"
            )
    return found, folder


def write(target: Path, config: Config, found: Manifest, models: Path) -> None:
    """Writes everything in the pipeline's folder `target` except `transformer` and `scheduler`."""
    variant, names = found.facts["models"]["variant"], _used(config, found)
    entries: dict[str, object] = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        frozen.AUTOENCODER: ["diffusers", "AutoencoderKL"],
        "image_encoder": ABSENT,
        "feature_extractor": ABSENT,
    }
    _place_model(models, target, frozen.AUTOENCODER, variant)
    about = read_json(models / frozen.AUTOENCODER / "config.json", remedy=_REMEDY)
    about |= {"shift_factor": found.shift, "scaling_factor": found.scale}
    (target / frozen.AUTOENCODER / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    for name, slot in text_encoders.SLOTS.items():
        part, tokenizer = slot.part, slot.tokenizer
        if name not in names:
            entries |= {part: ABSENT, tokenizer: ABSENT}
            continue
        _place_model(models, target, part, variant)
        (target / tokenizer).mkdir()
        for path in sorted((models / tokenizer).iterdir()):
            if path.is_file():
                _place(path, target / tokenizer / path.name)
        entries |= {
            part: ["transformers", found.facts["models"]["parts"][name]["class"]],
            tokenizer: ["transformers", _tokenizer(models / tokenizer, slot.kind)],
        }
    (target / INDEX).write_text(json.dumps(entries, indent=2) + "\n")


def how_to_call(config: Config, found: Manifest, out: Path) -> str:
    """Returns Python code that samples with `rfjax sample`'s defaults: steps, guidance, null condition, T5 tokens."""
    sampler = config.evaluation.sampler
    t5 = [encoder.tokens for encoder in found.encoders if encoder.kind == "t5"]
    (tokens, size), pooled, _ = manifest.layout(found.encoders)
    height, width = found.buckets[0].pixels
    notes = [f"rfjax samples with {sampler.method}, diffusers with euler"] if sampler.method != "euler" else []
    if config.timestep_shift_by_area:
        notes.append(
            f"the scheduler's shift is for {height}x{width} pixels; for m times as many pixels multiply it by sqrt(m)"
        )
    # diffusers refuses a folder that lacks T5 unless it gets these arguments.
    absent = "" if "t5" in _used(config, found) else ", text_encoder_3=None, tokenizer_3=None"
    return (
        f'pipeline = StableDiffusion3Pipeline.from_pretrained("{out}"{absent})\n'
        f"null = dict(negative_prompt_embeds=torch.zeros(1, {tokens}, {size}), "
        f"negative_pooled_prompt_embeds=torch.zeros(1, {pooled}))\n"
        f'pipeline("a photo of a cat", num_inference_steps={sampler.steps}, guidance_scale={sampler.guidance_scale:g}, '
        f"max_sequence_length={t5[0] if t5 else 0}, height={height}, width={width}, **null)"
        + "".join(f"\n# {note}" for note in notes)
    )


def _used(config: Config, found: Manifest) -> tuple[str, ...]:
    """Lists the names of the corpus's text encoders that the run uses."""
    chosen = config.data.prepared.encoders
    return tuple(encoder.name for encoder in found.encoders if not chosen or encoder.name in chosen)


def _folders(name: str) -> tuple[str, str | None]:
    """Returns the names of a frozen model's folder and of its tokenizer's folder (None if it has no tokenizer)."""
    slot = text_encoders.SLOTS.get(name)
    return (slot.part, slot.tokenizer) if slot else (name, None)


def _place_model(models: Path, target: Path, part: str, variant: str) -> None:
    """Links or copies a model's config and weights into the folder `part` of `target`, under names without the
    variant."""
    (target / part).mkdir()
    plain = lambda name: name.replace(f".{variant}", "") if variant else name  # noqa: E731
    for path in (models / part / "config.json", *frozen.find_model(models, part, variant).weights):
        _place(path, target / part / plain(path.name))
    for path in (models / part).glob(f"*.safetensors.index{f'.{variant}' if variant else ''}.json"):
        index = read_json(path, _Index, remedy=_REMEDY)
        named = {name: plain(file) for name, file in index["weight_map"].items()}
        (target / part / plain(path.name)).write_text(json.dumps({**index, "weight_map": named}, indent=2) + "\n")


def _place(path: Path, target: Path) -> None:
    """Hard-links a file of weights if possible, since weights are gigabytes that nobody edits. Otherwise copies."""
    try:
        if path.suffix == ".safetensors":
            os.link(path.resolve(), target)
            return
    except OSError:  # another file system, or one without links
        pass
    shutil.copyfile(path, target)


def _tokenizer(folder: Path, kind: str) -> str:
    """Returns the class of a tokenizer: the class that its folder names, else the usual class for the kind of
    encoder."""
    try:
        settings = read_json(folder / "tokenizer_config.json", _TokenizerConfig, remedy=_REMEDY)
    except FileNotFoundError:
        return TOKENIZERS[kind]
    return settings.get("tokenizer_class") or TOKENIZERS[kind]
