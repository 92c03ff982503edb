"""The kinds of autoencoders, as a table: what each stores, and how its class of diffusers encodes and decodes.

A row of the table turns images in [-1, 1] into the latents that a record stores, and back. The row `identity` stores
the pixels themselves and needs no model. Images and latents are in PyTorch's order: batch, channels, height, width.
Clips have their frames before the height. An autoencoder of images encodes a clip frame by frame; one of clips takes an
image as a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json

FOLDER = "vae"
IDENTITY = "identity"  # no model: latents are pixels
LARGEST_SCALE = 1e6  # a larger scale or shift in a config.json is taken for damage


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One class of autoencoders. `reduction` and `channels` read the loaded model."""

    stored: str  # what the latents are, for the docs
    scaled: bool  # whether the model's config.json has the latents' scale, and perhaps their shift
    reduction: Callable  # an image's side in pixels divided by its latent's
    channels: Callable
    encode: Callable  # (model, images in [-1, 1]) -> latents
    decode: Callable  # (model, latents) -> images in [-1, 1]
    # (model) -> r, where clips of 1 + r k frames have latents of 1 + k frames; None for an autoencoder of images
    time_reduction: Callable | None = None


@dataclass(frozen=True)
class Autoencoder:
    """A loaded autoencoder: functions that encode and decode arrays of images or of clips, and the numbers that
    describe its latents (reductions, channels, shift, scale)."""

    encode: Callable
    decode: Callable
    reduction: int
    channels: int
    shift: float
    scale: float
    time_reduction: int = 1  # it takes clips of 1 + time_reduction * k frames


def _posterior_mean(model, images):
    return model.encode(images).latent_dist.mode()


def _decoded(model, latents):
    return model.decode(latents).sample


def _by_blocks(model):
    return 2 ** (len(model.config.block_out_channels) - 1)


def _flux2_statistics(model):
    """Returns (mean, standard deviation) of each latent channel. FLUX.2's autoencoder keeps them in a batch norm
    without weights."""
    mean, variance = (values.view(1, -1, 1, 1) for values in (model.bn.running_mean, model.bn.running_var))
    return mean, (variance + model.config.batch_norm_eps).sqrt()


def _encode_flux2(model, images):
    """Encodes images to the latents of Flux2Pipeline: a 2x2 patch becomes channels, and each channel is normalised."""
    raw, (high, wide) = _posterior_mean(model, images), model.config.patch_size
    n, channels, height, width = raw.shape
    patches = raw.reshape(n, channels, height // high, high, width // wide, wide).permute(0, 1, 3, 5, 2, 4)
    mean, deviation = _flux2_statistics(model)
    return (patches.reshape(n, channels * high * wide, height // high, width // wide) - mean) / deviation


def _decode_flux2(model, latents):
    mean, deviation = _flux2_statistics(model)
    (n, _, height, width), (high, wide) = latents.shape, model.config.patch_size
    patches = (latents * deviation + mean).reshape(n, model.config.latent_channels, high, wide, height, width)
    raw = patches.permute(0, 1, 4, 2, 5, 3)
    return _decoded(model, raw.reshape(n, model.config.latent_channels, height * high, width * wide))


def _wan_statistics(model, like):
    """Returns (mean, standard deviation) of each latent channel, with the type and device of the tensor `like`. Wan's
    autoencoder has the numbers in its config.json."""
    given = (model.config.latents_mean, model.config.latents_std)
    return (like.new_tensor(numbers).view(1, -1, 1, 1, 1) for numbers in given)


def _encode_wan(model, clips):
    """Latents of WanPipeline: each channel normalised."""
    raw = _posterior_mean(model, clips)
    mean, deviation = _wan_statistics(model, raw)
    return (raw - mean) / deviation


def _decode_wan(model, latents):
    mean, deviation = _wan_statistics(model, latents)
    return _decoded(model, latents * deviation + mean)


KINDS = {
    "AutoencoderKL": Kind(
        stored="the posterior's mean (SD, SD3, FLUX.1)",
        scaled=True,
        reduction=_by_blocks,
        channels=lambda model: model.config.latent_channels,
        encode=_posterior_mean,
        decode=_decoded,
    ),
    "AutoencoderKLFlux2": Kind(
        stored="the posterior's mean in 2x2 patches, each channel normalised by the model's own statistics",
        scaled=False,
        reduction=lambda model: _by_blocks(model) * model.config.patch_size[0],
        channels=lambda model: model.bn.num_features,
        encode=_encode_flux2,
        decode=_decode_flux2,
    ),
    "AutoencoderDC": Kind(
        stored="the code, which is no distribution",
        scaled=True,
        reduction=lambda model: model.spatial_compression_ratio,
        channels=lambda model: model.config.latent_channels,
        encode=lambda model, images: model.encode(images).latent,
        decode=_decoded,
    ),
    "AutoencoderTiny": Kind(
        stored="the code, which is no distribution, on the scale of the model that it imitates",
        scaled=True,
        reduction=lambda model: 2 ** (len(model.config.encoder_block_out_channels) - 1),
        channels=lambda model: model.config.latent_channels,
        encode=lambda model, images: model.encode(images).latents,
        decode=_decoded,
    ),
    "AutoencoderKLWan": Kind(
        stored="the posterior's mean, each channel normalised by the statistics in config.json (Wan 2.1, 2.2)",
        scaled=False,
        reduction=lambda model: 2 ** (len(model.config.dim_mult) - 1) * (model.config.patch_size or 1),
        channels=lambda model: model.config.z_dim,
        encode=_encode_wan,
        decode=_decode_wan,
        time_reduction=lambda model: 2 ** sum(model.config.temperal_downsample),
    ),
    "AutoencoderKLHunyuanVideo": Kind(
        stored="the posterior's mean (HunyuanVideo)",
        scaled=True,
        reduction=lambda model: model.config.spatial_compression_ratio,
        channels=lambda model: model.config.latent_channels,
        encode=_posterior_mean,
        decode=_decoded,
        time_reduction=lambda model: model.config.temporal_compression_ratio,
    ),
    IDENTITY: Kind(
        stored="pixels in [-1, 1]; there is no model",
        scaled=False,
        reduction=lambda model: 1,
        channels=lambda model: 3,
        encode=lambda model, images: images,
        decode=lambda model, latents: latents,
    ),
}


def check_kind(folder: Path, model: str) -> Kind:
    """Returns the row of the table for a model's class. Raises `ConfigError` for a class without a row."""
    if model not in KINDS:
        known = ", ".join(name for name in KINDS if name != IDENTITY)
        remedy = f"--autoencoder {IDENTITY} prepares pixels, without an autoencoder"
        raise ConfigError(f"{folder / FOLDER} is a {model}; an autoencoder must be one of {known}. {remedy}")
    return KINDS[model]


def load_autoencoder(folder: Path, model: str, place) -> Autoencoder:
    """Loads the autoencoder in `folder / FOLDER`, of the class `model`, on a `place.Place`."""
    import diffusers

    kind, scaling = check_kind(folder, model), read_scaling(folder, model)
    if not hasattr(diffusers, model):
        raise ConfigError(f"this diffusers has no {model}; install a newer one: pip install -U 'rfjax[prepare]'")
    loaded = place.model(getattr(diffusers, model), folder / FOLDER, torch_dtype=place.dtype)
    of_any = _frame_by_frame if kind.time_reduction is None else _with_time
    return Autoencoder(
        encode=of_any(place.arrays(lambda images: kind.encode(loaded, place.tensor(images)))),
        decode=of_any(place.arrays(lambda latents: kind.decode(loaded, place.tensor(latents)))),
        reduction=kind.reduction(loaded),
        channels=kind.channels(loaded),
        shift=scaling["shift_factor"] or 0.0,
        scale=scaling["scaling_factor"],
        time_reduction=1 if kind.time_reduction is None else kind.time_reduction(loaded),
    )


def _frame_by_frame(of_images: Callable) -> Callable:
    """Returns a function of images or clips. For clips it calls `of_images` once for each clip, with all frames of the
    clip as a batch."""

    def run(values):
        if values.ndim == 4:
            return of_images(values)
        return np.stack([of_images(clip.swapaxes(0, 1)).swapaxes(0, 1) for clip in values])

    return run


def _with_time(of_clips: Callable) -> Callable:
    """Returns a function of images or clips, which gives images to `of_clips` as clips of one frame."""

    def run(values):
        return of_clips(values) if values.ndim == 5 else of_clips(values[:, :, None])[:, :, 0]

    return run


def pixels() -> Autoencoder:
    """Returns the `Autoencoder` of the row `identity`, whose latents are the pixels. Nothing is loaded."""
    kind = KINDS[IDENTITY]
    return Autoencoder(
        lambda images: kind.encode(None, images),
        lambda latents: kind.decode(None, latents),
        reduction=kind.reduction(None),
        channels=kind.channels(None),
        shift=0.0,
        scale=1.0,
    )


class Scaling(TypedDict):
    """The fields of an autoencoder's config.json that shift and scale its latents."""

    scaling_factor: float
    shift_factor: NotRequired[float | None]


def read_scaling(folder: Path, model: str = "AutoencoderKL") -> Scaling:
    """Reads the shift (None: no shift) and the scale of the latents from the config.json of an autoencoder of the class
    `model`. For a class that is not `scaled` (`Kind`), returns scale 1 and no shift, and reads no file: its latents are
    stored as a network sees them.

    Raises `ConfigError` if the scale is missing, because diffusers would silently take the scale of Stable Diffusion 1.
    Also raises it if the scale is not above 0, or if scale or shift exceeds `LARGEST_SCALE` in size.
    """
    if not KINDS[model].scaled:
        return {"scaling_factor": 1.0, "shift_factor": None}
    path = folder / FOLDER / "config.json"
    found = read_json(path, Scaling, remedy="fetch the folder again, or write the factor into it", error=ConfigError)
    if not 0 < found["scaling_factor"] < LARGEST_SCALE or abs(found.get("shift_factor") or 0) > LARGEST_SCALE:
        given = f"scaling_factor {found['scaling_factor']:g} and shift_factor {found.get('shift_factor')}"
        raise ConfigError(f"{path} has {given}; a scale is above 0, and neither is beyond {LARGEST_SCALE:g}")
    return {"shift_factor": None, **found}
