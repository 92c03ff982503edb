"""Shows the way from photographs to samples: prepares 16 photographs, overfits a network to them, samples and decodes.

    pip install -e '.[test,torch]'
    python analysis/overfit_photographs.py --folder /a/folder --out docs/pictures/photographs.png

The photographs are from scikit-image and scikit-learn, with captions. Without a network connection there are no
pretrained models. So the text encoders are tiny and random (a caption is then just a code for its photograph), and a
small `AutoencoderKL` is first trained on the photographs. All other steps are rfjax's commands. The picture has three
rows: the photographs, their reconstructions by the autoencoder, and the samples from their captions. The script counts
for how many captions the sample is nearer to the reconstruction of its own photograph than to any other, and measures
the distances; it prints both and writes them to found.json.

A part whose files exist is skipped; remove the files to run it again.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import photographs, tiny_models  # noqa: E402

SIDE, TOKENS = 64, 24
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "name": "photographs",
        "model": {{"depth": 2, "hidden": 128, "head_size": 32, "patch_size": 2, "position_tokens": 8, \
"position_span": 8.0, "position_grid": 8}},
        "data": {{"corpus": "prepared", "prepared": {{"path": {corpus!r}}}, "image_size": 16, "channels": 8,
                  "context_tokens": {context}, "context_size": 80, "pooled_size": 72}},
        "train": {{"steps": {steps}, "batch_size": 16, "learning_rate": 2e-3, "schedule": "wsd", "warmup_steps": 50, \
"decay_fraction": 0.4,
                   "ema_decay": 0.99, "ema_every": 1, "condition_dropout": 0.0, "checkpoint_every": 250, "log_every": \
50}},
        "evaluation": {{"validation": {{"examples": 0}}, "geneval": {{"prompts_per_task": 0}}}},
    }})
"""


class Clock:
    """The seconds of each part, kept in a file, so that a part that is skipped keeps the seconds of an earlier
    command."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, work):
        began = time.monotonic()
        result = work()
        self.seconds[name] = round(time.monotonic() - began)
        self._path.write_text(json.dumps(self.seconds))
        print(f"{name}: {self.seconds[name]} s", flush=True)
        return result


def rfjax(*arguments):
    print("rfjax", *arguments, flush=True)
    subprocess.run(
        [sys.executable, "-P", "-m", "rfjax", *map(str, arguments)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def pixels(names) -> np.ndarray:
    """The photographs as prepare cuts them, [n, SIDE, SIDE, 3] bytes."""
    from rfjax.prepare.images import decode

    return np.stack([decode(photographs.encoded(name), SIDE, "lanczos").pixels for name in names])


def few_tokens(models: Path) -> None:
    """Makes the tiny CLIP models take `TOKENS` tokens instead of 77. A token has only a letter or two, so captions are
    cut, but they still differ."""
    for part in ("tokenizer", "tokenizer_2"):
        path = models / part / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": TOKENS}))


def train_autoencoder(
    folder: Path,
    images: np.ndarray,
    steps: int,
    *,
    channels=(16, 32, 64),
    latent_channels=8,
    batch=8,
    crop=32,
    every=100,
) -> None:
    """Trains a small AutoencoderKL on random crops of `images` [n, height, width, 3] bytes, and saves it as folder/vae.
    A side of 2^(levels - 1) pixels becomes one latent pixel, with levels = len(channels)."""
    torch.manual_seed(0)
    # The layers are too small to share. On busy cores OpenMP's threads wait for each other: it took 80 times as long.
    torch.set_num_threads(1)
    levels = len(channels)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=latent_channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=images.shape[1],
    )
    data = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    order = torch.cat([torch.randperm(len(data)) for _ in range(steps * batch // len(data) + 1)])
    began = time.monotonic()
    for step in range(steps):
        top, left = (int(torch.randint(0, side - crop + 1, ())) for side in data.shape[2:])
        rows = data[order[step * batch : (step + 1) * batch], :, top : top + crop, left : left + crop]
        posterior = model.encode(rows).latent_dist
        made = model.decode(posterior.sample()).sample
        loss = (made - rows).abs().mean() + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == steps - 1:
            error, spent = float((made - rows).abs().mean().detach()) / 2, time.monotonic() - began
            print(
                f"autoencoder: step {step}, mean absolute error {error:.4f}, {spent:.0f} s, "
                f"{spent / (step + 1) * (steps - step - 1):.0f} s left",
                flush=True,
            )
    model.eval().save_pretrained(folder / "vae")


def rebuilt_by(folder: Path, images: np.ndarray) -> np.ndarray:
    """Returns the reconstructions of images [n, height, width, 3] bytes by the autoencoder of a folder, also bytes."""
    model = AutoencoderKL.from_pretrained(folder / "vae")
    data = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        back = model.decode(model.encode(data).latent_dist.mode()).sample.permute(0, 2, 3, 1).numpy()
    return (np.clip(back / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)


def sampled_images(path: Path, count: int, height: int, width: int) -> np.ndarray:
    """Cuts a picture by `rfjax sample --samples=1` into its images, uint8 [count, height, width, 3].

    In the picture they stand below each other with a gap, enlarged by the least whole factor that makes them at least
    128 pixels high.
    """
    sheet = np.asarray(Image.open(path).convert("RGB"))
    tall, scale = sheet.shape[0] // count, -(-128 // height)
    return np.stack(
        [sheet[row * tall : row * tall + height * scale : scale, : width * scale : scale] for row in range(count)]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--autoencoder-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names, models = list(photographs.FILES), args.folder / "models"
    args.folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(args.folder / "seconds.json")
    captions = [photographs.FILES[name][1] for name in names]
    images = pixels(names)
    if not (models / "vae" / "config.json").is_file():
        models.mkdir(parents=True, exist_ok=True)
        tiny_models.save_models(models)
        few_tokens(models)
        (models / "vae" / "config.json").unlink()  # of no use here: it is of SD3's size, and not trained
        clock.of("autoencoder", lambda: train_autoencoder(models, images, args.autoencoder_steps))
    photographs.write_folder(args.folder / "photographs", tuple(names))
    corpus, run = args.folder / "corpus", args.folder / "run"
    clock.of(
        "prepare",
        lambda: rfjax(
            "prepare",
            args.folder / "photographs",
            f"--out={corpus}",
            f"--models={models}",
            f"--size={SIDE}",
            "--encoders=clip_l,clip_g",
            "--validation-share=0",
            "--latent-scaling=measured",
            "--precision=float32",
        ),
    )
    rfjax("inspect", corpus)
    (args.folder / "config.py").write_text(CONFIG.format(corpus=str(corpus), steps=args.steps, context=TOKENS))
    clock.of("train", lambda: rfjax("train", f"--config={args.folder / 'config.py'}", f"--workdir={run}"))
    clock.of(
        "sample",
        lambda: rfjax(
            "sample",
            run,
            *(f"--prompt={caption}" for caption in captions),
            "--samples=1",
            f"--out={args.folder / 'samples.png'}",
            "--config.evaluation.sampler.steps=50",
            "--config.evaluation.sampler.guidance_scale=1.0",
        ),
    )

    rebuilt = rebuilt_by(models, images)
    sampled = sampled_images(args.folder / "samples.png", len(names), SIDE, SIDE)
    far = np.abs(sampled[:, None].astype(float) - rebuilt[None].astype(float)).mean((2, 3, 4)) / 255
    found = {
        "captions": len(names),
        "nearest_to_their_own": int((far.argmin(1) == np.arange(len(names))).sum()),
        "mean_absolute_error_to_own": float(np.diag(far).mean()),
        "to_the_others": float(far[~np.eye(len(names), dtype=bool)].mean()),
        "of_the_autoencoder": float(np.abs(rebuilt.astype(float) - images).mean() / 255),
        "seconds": clock.seconds,
    }
    print(json.dumps(found, indent=1))
    (args.folder / "found.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = [np.concatenate(row, 1) for row in (images, rebuilt, sampled)]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(args.out)


if __name__ == "__main__":
    main()
