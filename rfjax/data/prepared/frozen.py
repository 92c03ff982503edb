"""The frozen autoencoder and text encoders, from a folder laid out as diffusers' StableDiffusion3Pipeline.

Inputs and outputs are NumPy arrays; PyTorch, transformers and diffusers are imported when the models are loaded. The
tables of `autoencoders` and `text_encoders` say which classes there are, and what is stored of each. Text features are
kept apart for each encoder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from rfjax.data.prepared import autoencoders, text_encoders
from rfjax.data.prepared.autoencoders import IDENTITY
from rfjax.data.prepared.manifest import Manifest, StoredEncoder
from rfjax.data.prepared.model_folders import find_model, identity
from rfjax.data.prepared.place import Place
from rfjax.errors import ConfigError, RfjaxError

AUTOENCODER = autoencoders.FOLDER


@dataclass(frozen=True)
class FrozenModels:
    """The loaded autoencoder and text encoders of a corpus. `facts` has each model's class and the hash of every file
    that decides its outputs."""

    encoders: tuple[StoredEncoder, ...]
    latent_channels: int
    reduction: int  # an image's side in pixels divided by its latent's side
    shift: float
    scale: float
    facts: dict
    _text: dict[str, Callable]  # name -> captions -> (context, pooled or None)
    _encode: Callable
    _decode: Callable
    _tokens: dict[str, Callable]
    time_reduction: int = 1  # clips have 1 + time_reduction * k frames, and their latents 1 + k

    def latents(
        self, images: Float[np.ndarray, "n *frames height width 3"] | UInt8[np.ndarray, "n *frames height width 3"]
    ) -> Float[np.ndarray, "n *f h w c"]:
        """Encodes images or clips, given as floats in [0, 1] or as uint8. Returns float32 latents, neither shifted nor
        scaled; `stored` in `autoencoders.KINDS` says what they are (often the posterior's mean)."""
        unit = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images
        return np.moveaxis(self._encode(np.moveaxis(2 * unit - 1, -1, 1)), 1, -1)

    def images(self, raw: Float[np.ndarray, "n *f h w c"]) -> Float[np.ndarray, "n *frames height width 3"]:
        """Decodes raw latents to images or clips in [0, 1]."""
        return np.clip(np.moveaxis(self._decode(np.moveaxis(raw, -1, 1)), 1, -1) / 2 + 0.5, 0.0, 1.0)

    def text(self, captions: Sequence[str]) -> dict[str, Float[np.ndarray, "n ..."]]:
        """Returns each encoder's features of the captions in float32: `NAME.context` [n, tokens, channels] and, if the
        encoder has a pooled vector, `NAME.pooled` [n, size]."""
        found = {}
        for name, features in self._text.items():
            context, pooled = features(list(captions))
            found[f"{name}.context"] = context
            if pooled is not None:
                found[f"{name}.pooled"] = pooled
        return found

    def token_counts(self, captions: Sequence[str]) -> dict[str, list[int]]:
        """Returns {encoder's name: number of tokens of each caption before truncation}. Special tokens are counted; the
        tokens that the setting `skip` leaves out are not."""
        return {name: count(list(captions)) for name, count in self._tokens.items()}


def load(
    folder: str | Path,
    *,
    encoders: Sequence[str] = (),
    autoencoder: str = AUTOENCODER,
    t5_tokens: int = 77,
    text_settings: Mapping[str, Mapping[str, int | str]] | None = None,
    compute_dtype: str = "float32",
    device: str = "",
    variant: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> FrozenModels:
    """Loads the autoencoder of a folder, and the text encoders `encoders` (by default all in the folder).

    With `autoencoder` "identity", latents are pixels and the folder needs no autoencoder. Raises `ConfigError` for a
    missing folder, model or weight. Nothing is downloaded.
    """
    folder, settings = Path(folder), text_settings or {}
    if not folder.is_dir():
        command = "hf download stabilityai/stable-diffusion-3-medium-diffusers --local-dir DIR"
        raise ConfigError(f"no folder of models at {folder}; `{command}` writes one, with vae, text_encoder and so on")
    slots = _chosen_encoders(folder, encoders)
    for name in settings:
        if name not in slots:
            raise ConfigError(
                f"--text-setting names {name!r}, which is none of the text encoders; give one of {', '.join(slots)}"
            )
    parts = {} if autoencoder == IDENTITY else {AUTOENCODER: find_model(folder, AUTOENCODER, variant)}
    for part in parts.values():
        autoencoders.check_kind(folder, part.model)
        autoencoders.read_scaling(folder, part.model)
    kinds = {}
    for name, slot in slots.items():
        parts[name] = find_model(folder, slot.part, variant)
        kinds[name] = text_encoders.kind_of(folder, name, slot, parts[name].model)
        text_encoders.settings_of(name, kinds[name], settings.get(name, {}))
        if not (folder / slot.tokenizer).is_dir():
            raise ConfigError(f"{folder} has {slot.part} but not its tokenizer {slot.tokenizer}; copy that folder, too")
    try:
        import torch
        import transformers

        if autoencoder != IDENTITY:
            import diffusers  # noqa: F401
    except ImportError as error:
        packages = "PyTorch, transformers and diffusers"
        raise ConfigError(f"the frozen models need {packages} ({error}); run pip install 'rfjax[prepare]'") from None
    if not sys.stderr.isatty():  # in a log, a progress bar is one long line
        transformers.utils.logging.disable_progress_bar()
    place = Place(torch, device, compute_dtype, variant)
    say(f"loading {', '.join(parts)} of {folder} on {place.device}, in {compute_dtype}")
    latents = (
        autoencoders.pixels()
        if autoencoder == IDENTITY
        else autoencoders.load_autoencoder(folder, parts[AUTOENCODER].model, place)
    )
    text, tokens, stored = {}, {}, []
    for name, slot in slots.items():
        given = {"settings": settings.get(name, {}), "t5_tokens": t5_tokens}
        text[name], tokens[name], sizes = text_encoders.load_text_encoder(
            folder, name, slot, kinds[name], parts[name].model, place, **given
        )
        stored.append(StoredEncoder(name, kinds[name], *sizes))
    say("hashing their weights")
    facts = {AUTOENCODER: identity(IDENTITY, folder, ())} if autoencoder == IDENTITY else {}
    facts |= {
        name: part.facts(folder, slots[name].tokenizer if name in slots else None) for name, part in parts.items()
    }
    models = _models(latents, tuple(stored), facts, text, tokens)
    try_out(models, folder)
    return models


def _chosen_encoders(folder, names) -> dict[str, text_encoders.Slot]:
    there = text_encoders.slots_of(folder)
    for name in names:
        if name not in there and name not in text_encoders.SLOTS:
            known = ", ".join(dict.fromkeys((*text_encoders.SLOTS, *there)))
            raise ConfigError(f"--encoders has {name!r}; it may have {known}")
    chosen = {name: text_encoders.slot_of(folder, name) for name in (tuple(names) or tuple(there))}
    if not chosen:
        known = ", ".join(slot.part for slot in text_encoders.SLOTS.values())
        raise ConfigError(f"{folder} has no text encoder; add one of the folders {known}, {text_encoders.PREFIX}NAME")
    return chosen


def _models(latents, encoders, facts, text, tokens) -> FrozenModels:
    form = (latents.channels, latents.reduction, latents.shift, latents.scale)
    return FrozenModels(encoders, *form, facts, text, latents.encode, latents.decode, tokens, latents.time_reduction)


def pixel_models() -> FrozenModels:
    """Models that only turn pixels to latents and back: nothing is loaded."""
    return _models(autoencoders.pixels(), (), {}, {}, {})


def try_out(models: FrozenModels, folder: Path) -> None:
    """Encodes one caption and one image, so that unusable models are found before hours of work. Raises `ConfigError`
    if that fails, and for features or latents that are missing or not finite."""
    try:
        found = models.text(["a photo of a cat"])
        for encoder in models.encoders:
            found[f"the tokens of {encoder.name}"] = np.array(models.token_counts(["a cat"])[encoder.name])
        side = np.linspace(0, 1, 8 * models.reduction, dtype=np.float32)
        found["latents"] = models.latents(np.broadcast_to(side[None, :, None, None], (1, len(side), len(side), 3)))
    except RfjaxError:
        raise
    except Exception as error:  # PyTorch, transformers and diffusers raise their own kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"the models in {folder} cannot be used: {why}; fetch the folder again") from None
    for name, array in found.items():
        if not array.size or not np.isfinite(array).all():
            what = "no numbers" if not array.size else "numbers that are not finite"
            raise ConfigError(f"the models in {folder} give {what} for {name}; fetch the folder again")


def of_corpus(manifest: Manifest, folder: str | Path, encoders: Sequence[str]) -> FrozenModels:
    """Loads the autoencoder and the text encoders `encoders` with which a corpus was prepared. The corpus's other
    encoders may be missing from the folder.

    `folder` has the models; if it is "", the folder that the manifest names is used. Raises `ConfigError` for models
    that are not there, or that have changed since the corpus was prepared.
    """
    facts, where = manifest.facts, folder or manifest.facts["models"]["folder"]
    if not Path(where).is_dir():
        given = f"no folder {where}, which had the models that {manifest.folder} was prepared with"
        raise ConfigError(f"{given}; to encode captions or decode latents, name it in config.data.prepared.models")
    tokens = next((encoder.tokens for encoder in manifest.encoders if encoder.name == "t5"), 77)
    dtype, variant = facts["recipe"]["compute_dtype"], facts["models"]["variant"]
    autoencoder = IDENTITY if manifest.of_pixels else AUTOENCODER
    settings = {name: each for name, each in facts["recipe"].get("text_settings", {}).items() if name in encoders}
    models = load(
        where,
        encoders=tuple(encoders),
        autoencoder=autoencoder,
        t5_tokens=tokens,
        text_settings=settings,
        compute_dtype=dtype,
        variant=variant,
    )
    for name, about in facts["models"]["parts"].items():
        here, then = models.facts.get(name, about)["sha256"], about["sha256"]
        if here != then:
            given = f"{name} in {where} is not what {manifest.folder} was prepared with"
            raise ConfigError(f"{given}: its files hash to {here[:12]}, not {then[:12]}; give the folder used then")
    return models
