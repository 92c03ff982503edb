"""From photographs to samples: prepare, train until it knows them by heart, sample, decode.

    pip install -e '.[test,torch]'
    python analysis/overfit_photographs.py --folder /a/folder [--out docs/pictures/photographs.png]

16 photographs of scikit-image and scikit-learn with their captions. No pretrained model is at hand offline, so the
text encoders are tiny and random (a caption then is a code for its photograph) and a small `AutoencoderKL` is
trained on the photographs first. The rest is rfjax's commands. The picture has three rows: the photographs,
what the autoencoder makes of them, and what the network samples from their captions. Printed: of how many
captions the sample is nearest to its own photograph's latent, and how near.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/prepare"), str(ROOT / "tests/prepare/with_torch")]

import photographs  # noqa: E402
import tiny_models  # noqa: E402

SIDE = 64
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "name": "photographs",
        "model": {{"depth": 2, "hidden": 192, "head_size": 32, "patch_size": 1, "position_tokens": 8, "position_span": 8.0, "position_grid": 8}},
        "data": {{"corpus": "prepared", "prepared": {{"path": {corpus!r}}}, "image_size": 8, "channels": 16,
                  "context_tokens": 154, "context_size": 96, "pooled_size": 72}},
        "train": {{"steps": {steps}, "batch_size": 16, "learning_rate": 2e-3, "schedule": "wsd", "warmup_steps": 100, "decay_fraction": 0.3,
                   "ema_decay": 0.99, "ema_every": 1, "condition_dropout": 0.05, "checkpoint_every": 500, "log_every": 100}},
        "evaluation": {{"validation": {{"examples": 0}}, "geneval": {{"prompts_per_task": 0}}}},
    }})
"""


def rfjax(*arguments):
    print("rfjax", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "rfjax", *map(str, arguments)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def pixels(names) -> np.ndarray:
    """The photographs as prepare cuts them, [n, SIDE, SIDE, 3] bytes."""
    from rfjax.prepare.images import decode

    return np.stack([decode(photographs.encoded(name), SIDE, "lanczos").pixels for name in names])


def train_autoencoder(folder: Path, images: np.ndarray, steps: int) -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(32, 32, 64, 64),
        layers_per_block=1, norm_num_groups=8, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, sample_size=SIDE,
    )  # fmt: skip
    data = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        posterior = model.encode(data).latent_dist
        made = model.decode(posterior.sample()).sample
        loss = (made - data).abs().mean() + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"autoencoder: step {step}, mean absolute error {float((made - data).abs().mean()) / 2:.4f}", flush=True)
    model.eval().save_pretrained(folder / "vae")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--autoencoder-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began, names, models = time.monotonic(), list(photographs.FILES), args.folder / "models"
    captions = [photographs.FILES[name][1] for name in names]
    images = pixels(names)
    if not (models / "vae").is_dir():
        models.mkdir(parents=True, exist_ok=True)
        tiny_models.save_models(models)
        train_autoencoder(models, images, args.autoencoder_steps)
    photographs.write_folder(args.folder / "photographs", tuple(names))
    corpus, run = args.folder / "corpus", args.folder / "run"
    rfjax("prepare", args.folder / "photographs", f"--out={corpus}", f"--models={models}", f"--size={SIDE}", "--validation-share=0",
          "--latent-scaling=measured", "--precision=float32")  # fmt: skip
    rfjax("inspect", corpus)
    (args.folder / "config.py").write_text(CONFIG.format(corpus=str(corpus), steps=args.steps))
    rfjax("train", f"--config={args.folder / 'config.py'}", f"--workdir={run}")
    rfjax("sample", run, *(f"--prompt={caption}" for caption in captions), "--samples=1", f"--out={args.folder / 'samples.png'}",
          "--config.evaluation.sampler.steps=50", "--config.evaluation.sampler.guidance_scale=1.0")  # fmt: skip

    model = AutoencoderKL.from_pretrained(models / "vae")
    data = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        back = model.decode(model.encode(data).latent_dist.mode()).sample.permute(0, 2, 3, 1).numpy()
    rebuilt = (np.clip(back / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    sheet = np.asarray(Image.open(args.folder / "samples.png").convert("RGB"))
    sampled = sheet.reshape(len(names), SIDE, SIDE, 3)
    far = np.abs(sampled[:, None].astype(float) - rebuilt[None].astype(float)).mean((2, 3, 4)) / 255
    found = {
        "captions": len(names), "nearest_to_their_own": int((far.argmin(1) == np.arange(len(names))).sum()),
        "mean_absolute_error_to_own": float(np.diag(far).mean()), "to_the_others": float(far[~np.eye(len(names), dtype=bool)].mean()),
        "of_the_autoencoder": float(np.abs(rebuilt.astype(float) - images).mean() / 255), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    rows = [np.concatenate(row, 1) for row in (images, rebuilt, sampled)]
    picture = Image.fromarray(np.concatenate(rows))
    if args.out:
        picture.save(args.out)


if __name__ == "__main__":
    main()
