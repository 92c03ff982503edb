"""The frozen autoencoder and text encoders, from a folder laid out as diffusers' StableDiffusion3Pipeline.

Inputs and outputs are NumPy arrays; PyTorch, transformers and diffusers are imported when the models are loaded. Text
features are those of the pipeline's `encode_prompt`, kept apart for each encoder. CLIP gives the hidden states before
the last layer, without a final norm, and the pooled output, projected if the model has a projection. T5 gives the last
hidden states. As in the pipeline, tokens are padded to the model's length and there is no attention mask. Latents are
the mean of the posterior.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float, UInt8

from rfjax.data.prepared.manifest import Manifest, StoredEncoder
from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.json_files import read_json

# name -> kind, the model's folder, its tokenizer's folder
ENCODERS = {
    "clip_l": ("clip", "text_encoder", "tokenizer"),
    "clip_g": ("clip", "text_encoder_2", "tokenizer_2"),
    "t5": ("t5", "text_encoder_3", "tokenizer_3"),
}
AUTOENCODER = "vae"
CLASSES = {"clip": ("CLIPTextModel", "CLIPTextModelWithProjection"), "t5": ("T5EncoderModel",)}
SAFE = {"trust_remote_code": False}  # for everything that transformers loads: no code from a folder is run
LARGEST_SCALE = 1e6
WEIGHTS = r"(model|diffusion_pytorch_model){variant}(-\d+-of-\d+)?\.safetensors"


@dataclass(frozen=True)
class FrozenModels:
    """Loaded models. `facts` has each model's class and the hash of every file that decides its outputs."""

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

    def latents(
        self, images: Float[np.ndarray, "n height width 3"] | UInt8[np.ndarray, "n height width 3"]
    ) -> Float[np.ndarray, "n h w c"]:
        """Float32 posterior means, neither shifted nor scaled, of images in [0, 1] or in bytes."""
        unit = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images
        return self._encode((2 * unit - 1).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)

    def images(self, raw: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n height width 3"]:
        """Decodes raw latents to images in [0, 1]."""
        return np.clip(self._decode(raw.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1) / 2 + 0.5, 0.0, 1.0)

    def text(self, captions: Sequence[str]) -> dict[str, Float[np.ndarray, "n ..."]]:
        """Returns `NAME.context` [n, tokens, channels] and, if it has one, `NAME.pooled` [n, size] of each encoder, in
        float32."""
        found = {}
        for name, features in self._text.items():
            context, pooled = features(list(captions))
            found[f"{name}.context"] = context
            if pooled is not None:
                found[f"{name}.pooled"] = pooled
        return found

    def token_counts(self, captions: Sequence[str]) -> dict[str, list[int]]:
        """For each encoder, the number of tokens of each caption before truncation, special tokens included."""
        return {name: count(list(captions)) for name, count in self._tokens.items()}


def load(
    folder: str | Path,
    *,
    encoders: Sequence[str] = (),
    t5_tokens: int = 77,
    compute_dtype: str = "float32",
    device: str = "",
    variant: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> FrozenModels:
    """Loads the autoencoder of a folder, and the text encoders `encoders` (by default all in the folder).

    Raises `ConfigError` for a missing folder, model or weight. Nothing is downloaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        command = "hf download stabilityai/stable-diffusion-3-medium-diffusers --local-dir DIR"
        raise ConfigError(f"no folder of models at {folder}; `{command}` writes one, with vae, text_encoder and so on")
    names = tuple(encoders) or tuple(name for name, (_, part, _) in ENCODERS.items() if (folder / part).is_dir())
    for name in names:
        if name not in ENCODERS:
            raise ConfigError(f"--encoders has {name!r}; it may have {', '.join(ENCODERS)}")
    if not names:
        known = ", ".join(part for _, part, _ in ENCODERS.values())
        raise ConfigError(f"{folder} has no text encoder; add one of the folders {known}")
    parts = {AUTOENCODER: find_model(folder, AUTOENCODER, variant)}
    scaling = read_scaling(folder)
    for name in names:
        kind, part, tokenizer = ENCODERS[name]
        parts[name] = find_model(folder, part, variant)
        model, classes = parts[name].model, " or ".join(CLASSES[kind])
        if model not in CLASSES[kind]:
            raise ConfigError(f"{folder / part} is a {model}; {name} must be a {classes}")
        if not (folder / tokenizer).is_dir():
            raise ConfigError(f"{folder} has {part} and no {tokenizer}; copy this tokenizer, too")
    try:
        import torch
        import transformers
        from diffusers import AutoencoderKL  # noqa: F401
    except ImportError as error:
        packages = "PyTorch, transformers and diffusers"
        raise ConfigError(f"the frozen models need {packages} ({error}): pip install 'rfjax[prepare]'") from None
    if not sys.stderr.isatty():  # in a log, a progress bar is one long line
        transformers.utils.logging.disable_progress_bar()
    place = Place(torch, device, compute_dtype, variant)
    say(f"loading {', '.join((AUTOENCODER, *names))} of {folder} on {place.device}, in {compute_dtype}")
    autoencoder, encode, decode = _autoencoder(folder / AUTOENCODER, place)
    text, tokens, stored = {}, {}, []
    for name in names:
        kind, part, tokenizer = ENCODERS[name]
        text[name], tokens[name], sizes = _text_encoder(folder, name, parts[name].model, t5_tokens, place)
        stored.append(StoredEncoder(name, kind, *sizes))
    say("hashing their weights")
    facts = {name: part.facts(folder, ENCODERS[name][2] if name in ENCODERS else None) for name, part in parts.items()}
    models = FrozenModels(
        encoders=tuple(stored),
        latent_channels=autoencoder.latent_channels,
        reduction=2 ** (len(autoencoder.block_out_channels) - 1),
        shift=scaling["shift_factor"] or 0.0,
        scale=scaling["scaling_factor"],
        facts=facts,
        _text=text,
        _encode=encode,
        _decode=decode,
        _tokens=tokens,
    )
    try_out(models, folder)
    return models


class Scaling(TypedDict):
    """The fields of an autoencoder's config.json that shift and scale its latents."""

    scaling_factor: float
    shift_factor: NotRequired[float | None]


def read_scaling(folder: Path) -> Scaling:
    """The shift and scale of an autoencoder's latents. Raises `ConfigError` if the scale is not above 0, and if it is
    missing: diffusers would then silently take that of Stable Diffusion 1."""
    path = folder / AUTOENCODER / "config.json"
    found = read_json(path, Scaling, remedy="fetch the folder again, or write the factor into it", error=ConfigError)
    if not 0 < found["scaling_factor"] < LARGEST_SCALE or abs(found.get("shift_factor") or 0) > LARGEST_SCALE:
        given = f"scaling_factor {found['scaling_factor']:g} and shift_factor {found.get('shift_factor')}"
        raise ConfigError(f"{path} has {given}; a scale is above 0, and neither is beyond {LARGEST_SCALE:g}")
    return {"shift_factor": None, **found}


def try_out(models: FrozenModels, folder: Path) -> None:
    """Encodes one caption and one image. Raises `ConfigError` for features or latents that are missing or not finite,
    rather than after hours of work."""
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
    """Loads the autoencoder and the text encoders `encoders` with which a corpus was prepared. Its other encoders may
    be missing.

    Raises `ConfigError` for models that are not there, or that have changed since.
    """
    facts, where = manifest.facts, folder or manifest.facts["models"]["folder"]
    if not Path(where).is_dir():
        given = f"no folder {where}, which had the models that {manifest.folder} was prepared with"
        raise ConfigError(f"{given}; to encode captions or decode latents, name it in config.data.prepared.models")
    tokens = next((encoder.tokens for encoder in manifest.encoders if encoder.name == "t5"), 77)
    dtype, variant = facts["recipe"]["compute_dtype"], facts["models"]["variant"]
    models = load(where, encoders=tuple(encoders), t5_tokens=tokens, compute_dtype=dtype, variant=variant)
    for name, about in facts["models"]["parts"].items():
        here, then = models.facts.get(name, about)["sha256"], about["sha256"]
        if here != then:
            given = f"{name} in {where} is not what {manifest.folder} was prepared with"
            raise ConfigError(f"{given}: its files hash to {here[:12]}, not {then[:12]}; give the folder used then")
    return models


class ModelConfig(TypedDict):
    """The fields of a model's config.json that name its class."""

    _class_name: NotRequired[str | None]
    architectures: NotRequired[list[str] | None]


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, its class and its weight files, before anything is loaded."""

    part: Path
    model: str
    weights: tuple[Path, ...]

    def facts(self, folder: Path, tokenizer: str | None) -> dict:
        files = [self.part / "config.json", *self.weights]
        if tokenizer:
            files += sorted(path for path in (folder / tokenizer).iterdir() if path.is_file())
        return identity(self.model, folder, files)


def identity(model: str, folder: Path, files: Sequence[Path]) -> dict:
    """A model's class, the SHA-256 of each of its files, and one hash of them all."""
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    together = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    return {"class": model, "sha256": together, "files": hashes}


def find_model(folder: Path, part: str, variant: str) -> ModelFolder:
    """The model in `folder / part`. Raises `ConfigError` if it has no config.json or no weights."""
    config = folder / part / "config.json"
    try:
        about = read_json(config, ModelConfig, remedy="fetch the folder again", error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{folder / part} is no model's folder: it has no config.json") from None
    model = about.get("_class_name") or next(iter(about.get("architectures") or ()), "model of no known class")
    form = re.compile(WEIGHTS.format(variant=re.escape(f".{variant}") if variant else ""))
    weights = tuple(sorted(path for path in (folder / part).iterdir() if form.fullmatch(path.name)))
    if not weights:
        others = sorted(path.name for path in (folder / part).iterdir() if path.suffix in (".safetensors", ".bin"))
        hint = "--models-variant names the part between the dots, and .bin files are not read"
        hint = f"; it has {', '.join(others)}: {hint}" if others else ""
        wanted = f"model.{variant}.safetensors" if variant else "model.safetensors"
        raise ConfigError(f"{folder / part} has no weights: no {wanted} or shards of it{hint}")
    return ModelFolder(folder / part, model, weights)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_device(torch, name: str | None):
    """The device called `name`; by default a GPU if there is one, else the CPU. It is tested by an array put there.

    Raises `ConfigError` for a device that PyTorch does not know or that is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of many kinds, since each device has its own library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        given = f"--device is {name!r}, which PyTorch" if name else "PyTorch's own device, which it"
        raise ConfigError(f"{given} cannot use here ({reason}); give --device cpu") from None
    return device


class Place:
    """The device on which models run, and their type. `model` loads a model, from safetensors files only."""

    def __init__(self, torch, device: str, compute_dtype: str, variant: str = ""):
        self.torch = torch
        self.device = choose_device(torch, device)
        self.dtype = getattr(torch, compute_dtype)
        self.loading = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        self.loading["variant"] = variant or None

    def model(self, cls, folder, **options):
        """Loads the model of a folder. Refuses missing weights, which transformers and diffusers would make up."""
        try:
            model, info = cls.from_pretrained(folder, **self.loading, **options)
        except Exception as error:  # the libraries and safetensors raise their own kinds
            raise ConfigError(f"{folder} cannot be loaded as {cls.__name__}: {error}") from None
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            given = f"{folder} lacks {len(missing)} weights of {cls.__name__}, {missing[0]} among them"
            raise ConfigError(f"{given}; fetch the folder again")
        return model.eval().requires_grad_(False).to(self.device)

    def arrays(self, function):
        """Wraps `function` to run without gradients and to return a float32 array."""

        def run(*values):
            with self.torch.inference_mode():
                return function(*values).float().cpu().numpy()

        return run

    def tensor(self, array):
        return self.torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device, self.dtype)


def _autoencoder(folder, place):
    from diffusers import AutoencoderKL

    model = place.model(AutoencoderKL, folder, torch_dtype=place.dtype)
    encode = place.arrays(lambda images: model.encode(place.tensor(images)).latent_dist.mode())
    decode = place.arrays(lambda latents: model.decode(place.tensor(latents)).sample)
    return model.config, encode, decode


def _text_encoder(folder, name, model_class, t5_tokens, place):
    """Returns a function from captions to (context, pooled), a function from captions to token counts, and the sizes
    (tokens, channels, pooled size)."""
    import transformers

    kind, part, tokenizer_part = ENCODERS[name]
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / tokenizer_part, local_files_only=True, **SAFE)
    except Exception as error:
        raise ConfigError(f"{folder / tokenizer_part} cannot be loaded as a tokenizer: {error}") from None
    model = place.model(getattr(transformers, model_class), folder / part, dtype=place.dtype, **SAFE)
    tokens = t5_tokens if kind == "t5" else tokenizer.model_max_length
    limit = getattr(model.config, "max_position_embeddings", tokens)
    for what, count in (("model_max_length of its tokenizer", tokens), ("max_position_embeddings", limit)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{folder / part}: {what} is {count!r}, not a number of tokens; fetch the folder again")
    if tokens > limit:
        given = f"the tokenizer of {folder / part} gives {tokens} tokens, and the model has {limit} positions"
        raise ConfigError(f"{given}; fetch the tokenizer of this model")

    def ids(captions):
        padded = tokenizer(captions, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        return padded.input_ids.to(place.device)

    def clip(captions):
        with place.torch.inference_mode():
            out = model(ids(captions), output_hidden_states=True)
            pooled = out.text_embeds if "Projection" in model_class else out.pooler_output
            return out.hidden_states[-2].float().cpu().numpy(), pooled.float().cpu().numpy()

    def t5(captions):
        return place.arrays(lambda them: model(them)[0])(ids(captions)), None

    def counts(captions):
        return [len(row) for row in tokenizer(captions, truncation=False, verbose=False).input_ids]

    if kind == "t5":
        return t5, counts, (tokens, model.config.d_model, 0)
    size = model.config.projection_dim if "Projection" in model_class else model.config.hidden_size
    return clip, counts, (tokens, model.config.hidden_size, size)
