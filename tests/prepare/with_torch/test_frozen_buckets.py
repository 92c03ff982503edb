"""Aspect buckets with the real classes: latents of images that are not square, both ways."""

import io

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from helpers import photographs
from rfjax.cli import main
from rfjax.config import DataConfig, PreparedConfig
from rfjax.data.batch import stills
from rfjax.data.corpus import load_corpus

SIDES = {"coffee": (32, 48), "chelsea": (48, 32), "moon": (32, 32)}  # height, width


def test_latents_of_every_bucket_are_the_autoencoders_and_decode_to_its_sides(models, tmp_path):
    """Against diffusers' own processor and autoencoder on PIL's resized and cut images. Catches height and width
    exchanged on the way to the autoencoder and back, and batches that are made square."""
    root, images = photographs.write_folder(tmp_path / "in", tuple(SIDES)), {}
    turned = Image.open(root / "sub" / "chelsea.png").rotate(90, expand=True)
    turned.save(root / "sub" / "chelsea.png")
    for name, (rows, columns) in SIDES.items():
        image = Image.open(root / "sub" / f"{name}.png").convert("RGB")
        scale = max(rows / image.height, columns / image.width)
        left, top = (image.width - columns / scale) / 2, (image.height - rows / scale) / 2
        images[name] = image.resize(
            (columns, rows), Image.Resampling.LANCZOS, box=(left, top, image.width - left, image.height - top)
        )
    out = tmp_path / "out"
    words = [
        "prepare",
        str(root),
        f"--out={out}",
        f"--models={models}",
        "--buckets=32x32,32x48,48x32",
        "--precision=float32",
        "--validation-share=0",
    ]
    assert main(words) == 0
    data = DataConfig(
        corpus="prepared",
        image_size=4,
        channels=16,
        context_tokens=154,
        context_size=96,
        pooled_size=72,
        prepared=PreparedConfig(path=str(out)),
    )
    corpus, vae, processor = (
        load_corpus(data, 0),
        AutoencoderKL.from_pretrained(models / "vae"),
        VaeImageProcessor(vae_scale_factor=8),
    )
    for part in corpus.parts:
        batch, (caption,) = part.examples(np.arange(1), "train"), part.captions(np.arange(1), "train")
        name = next(name for name, (_, own) in photographs.FILES.items() if own == caption)
        assert part.bucket.pixels == SIDES[name]
        with torch.inference_mode():
            raw = vae.encode(processor.preprocess(images[name])).latent_dist.mean
            latents = ((raw - vae.config.shift_factor) * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()
            expected = processor.postprocess(vae.decode(raw).sample, output_type="np")
        assert np.abs(stills(batch.latents) - latents).max() < 1e-5 and latents.std() > 0.1
        shown = corpus.to_images(batch.latents)
        assert shown.shape == (1, *SIDES[name], 3) and np.abs(shown - expected).max() < 1e-5
        assert corpus.to_latents(shown).shape == batch.latents.shape
        again = corpus.encode([caption])
        assert np.abs(again[0] - batch.context).max() < 1e-5 and np.abs(again[1] - batch.pooled).max() < 1e-5
    picture = tmp_path / "p.png"
    assert main(["inspect", str(out), f"--out={picture}", f"--models={models}"]) == 0
    assert Image.open(io.BytesIO(picture.read_bytes())).width > 500
