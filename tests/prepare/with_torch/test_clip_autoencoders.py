"""The autoencoders of clips against diffusers' own pipelines, with tiny random weights of the real classes."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as hunyuan
from diffusers.video_processor import VideoProcessor

from helpers import tiny_kinds
from rfjax.data.prepared import frozen

TEXT = {"encoders": ("minilm",), "text_settings": {"minilm": {"tokens": 4}}}


def clips(frames, side=16):
    values = np.arange(2 * frames * side * (side + 8) * 3).reshape(2, frames, side, side + 8, 3)
    return ((values * 7) % 256).astype(np.uint8)


def of_wan(vae, video):
    """The latents of WanVideoToVideoPipeline before its noise."""
    without_noise = SimpleNamespace(add_noise=lambda latents, noise, timestep: latents)
    side = 2 ** (len(vae.config.dim_mult) - 1) * (vae.config.patch_size or 1)
    pipe = SimpleNamespace(vae=vae, scheduler=without_noise, vae_scale_factor_temporal=4, vae_scale_factor_spatial=side)
    sizes = {"height": video.shape[3], "width": video.shape[4], "num_channels_latents": vae.config.z_dim}
    given = {"batch_size": len(video), "dtype": torch.float32, "device": torch.device("cpu"), **sizes}
    return diffusers.WanVideoToVideoPipeline.prepare_latents(pipe, video, **given)


def of_hunyuan(vae, video):
    return hunyuan.retrieve_latents(vae.encode(video), None, "argmax") * vae.config.scaling_factor


def shown_by_wan(vae, latents):
    """The end of WanPipeline's call."""
    mean = torch.tensor(vae.config.latents_mean).view(1, vae.config.z_dim, 1, 1, 1)
    inverse = 1.0 / torch.tensor(vae.config.latents_std).view(1, vae.config.z_dim, 1, 1, 1)
    return vae.decode(latents / inverse + mean, return_dict=False)[0]


def shown_by_hunyuan(vae, latents):
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]


ROWS = {  # class, encoding, decoding, an image's side over its latent's
    "wan": (diffusers.AutoencoderKLWan, of_wan, shown_by_wan, 4),
    "wan_residual": (diffusers.AutoencoderKLWan, of_wan, shown_by_wan, 8),
    "hunyuan": (diffusers.AutoencoderKLHunyuanVideo, of_hunyuan, shown_by_hunyuan, 4),
}


@pytest.mark.parametrize("name", ROWS)
def test_latents_and_clips_are_those_of_the_librarys_pipeline(name, tmp_path):
    """Catches statistics left out or the wrong way round, frames for channels, a reduction of another axis, and clips
    of a batch that share the autoencoder's memory of past frames."""
    cls, encode, decode, reduction = ROWS[name]
    folder = tiny_kinds.save_kinds(tmp_path, name)
    models = frozen.load(folder, **TEXT)
    vae = cls.from_pretrained(folder / "vae").eval()
    assert (models.reduction, models.time_reduction) == (reduction, 4)
    pixels = clips(9)
    with torch.inference_mode():
        video = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        expected = torch.cat([encode(vae, one[None]) for one in video])
        shown = torch.cat([decode(vae, one[None]) for one in expected])
    seen = VideoProcessor().postprocess_video(shown, output_type="np")
    raw = models.latents(pixels)
    scaled = (raw - models.shift) * models.scale
    assert raw.shape == (2, 3, 16 // reduction, 24 // reduction, models.latent_channels)
    assert np.abs(scaled - expected.permute(0, 2, 3, 4, 1).numpy()).max() < 1e-5 and scaled.std() > 0.05
    long = models.latents(clips(17)[:1, :, :8, :8])
    assert long.shape[1] == 5 and models.images(long).shape[1] == 17  # HunyuanVideo's: in pieces of 16 frames
    again = models.images(raw)
    assert again.shape == pixels.shape and np.abs(again - seen).max() < 1e-5 and again.std() > 1e-3


def test_an_image_is_a_clip_of_one_frame_and_a_clip_is_many_images(tmp_path):
    """Catches an axis of frames that an image's latents keep, and an autoencoder of images that mixes frames."""
    causal = frozen.load(tiny_kinds.save_kinds(tmp_path / "a", "wan"), **TEXT)
    pixels = clips(1)
    assert np.array_equal(causal.latents(pixels[:, 0]), causal.latents(pixels)[:, 0])
    assert np.array_equal(causal.images(causal.latents(pixels[:, 0])), causal.images(causal.latents(pixels))[:, 0])
    still = frozen.load(tiny_kinds.save_kinds(tmp_path / "b", "AutoencoderTiny"), **TEXT)
    pixels = clips(3)
    latents = still.latents(pixels)
    assert latents.shape == (2, 3, 4, 6, 4) and still.time_reduction == 1
    each = np.stack([still.latents(pixels[:, frame]) for frame in range(3)], axis=1)
    assert np.abs(latents - each).max() < 1e-5
    assert np.abs(still.images(latents)[:, 1] - still.images(latents[:, 1])).max() < 1e-5
