"""Tests whether training at low resolution first is worth its compute for a run at high resolution.

    pip install -e '.[test,torch]'
    python analysis/finetune_resolution.py --folder /a/folder --out docs/pictures/resolutions.png

Scenes of one or two shapes on canvases of three aspect ratios, with captions, are written as a folder of PNGs. A small
`AutoencoderKL` is trained on them, and the text encoders are tiny and random. `rfjax prepare` makes two corpora of the
same images: squares of 16x16 latents, and buckets of 32x32, 40x24 and 24x40. Four runs of one network are trained:

- low: on the squares;
- child: from low's weights (`--init`), a few steps on the buckets;
- child_compute: on the buckets from scratch, for as many steps as child;
- equal_compute: on the buckets from scratch, with as many FLOPs as low and child together.

The last three runs differ only in their first weights and their number of steps. Their losses on the same validation
images and noise are compared, for each bucket and for all together, with standard errors of the paired differences.

A part whose files exist is skipped; remove the files to run it again.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import overfit_photographs as photographs_show  # puts the tests' folders on the path
from PIL import Image, ImageDraw

from helpers import tiny_models
from rfjax.data.prepared import manifest
from rfjax.data.scenes import BACKGROUNDS, PALETTE
from rfjax.data.shapes import CLASSES, coverage

CANVASES = ((64, 64), (80, 48), (48, 80))  # height, width in pixels; latents are half of that
BUCKETS = ",".join(f"{height}x{width}" for height, width in CANVASES)
LOW = 32  # pixels a side at low resolution
RUNS = ("child", "child_compute", "equal_compute")
TOKENS = photographs_show.TOKENS
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "name": {name!r},
        "model": {{"depth": 2, "hidden": 64, "head_size": 32, "patch_size": 2, "position_tokens": {tokens}, \
"position_span": 8.0,
                   "position_grid": 24, "qk_norm": True}},
        "data": {{"corpus": "prepared", "prepared": {{"path": {corpus!r}}}, "image_size": {side}, "channels": 4,
                  "context_tokens": {context}, "context_size": 80, "pooled_size": 72}},
        "train": {{"steps": {steps}, "batch_size": {batch}, "learning_rate": 2e-3, "schedule": "wsd", "warmup_steps": \
{warmup}, "decay_fraction": 0.3,
                   "ema_decay": 0.98, "ema_every": 1, "condition_dropout": 0.1, "checkpoint_every": 10000, \
"log_every": 25}},
        "evaluation": {{"weights": ("ema",), "validation": {{"examples": {examples}, "batch_size": 32}},
                        "geneval": {{"prompts_per_task": 0, "weights": ("ema",)}}, "sampler": {{"steps": 25, \
"guidance_scale": 3.0}}}},
    }})
"""


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, str]:
    """(pixels [height, width, 3] bytes, caption) of one or two shapes, the second right of or below the first."""
    canvas = np.full((height, width, 3), rng.uniform(*BACKGROUNDS))
    count = int(rng.integers(1, 3))
    across = width > height or (width == height and rng.random() < 0.5)
    words = []
    for number in range(count):
        name, color = CLASSES[rng.integers(len(CLASSES))], list(PALETTE)[rng.integers(len(PALETTE))]
        long, short = (width, height) if across else (height, width)
        cell = long / count
        radius = min(cell, short) * rng.uniform(0.26, 0.4)
        along, beside = (rng.uniform(radius + 1, side - radius - 1) for side in (cell, short))
        along += number * cell
        x, y = (along, beside) if across else (beside, along)
        alpha = coverage(name, np.arange(width)[None, :] + 0.5 - x, np.arange(height)[:, None] + 0.5 - y, radius)[
            ..., None
        ]
        canvas = canvas * (1 - alpha) + np.array(PALETTE[color]) * alpha
        words.append(f"{color} {name}")
    return (canvas * 255).round().astype(np.uint8), ", ".join(words)


def write_scenes(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels, caption = scene(rng, *CANVASES[number % len(CANVASES)])
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
        (folder / f"{number:05}.txt").write_text(caption)


def make_models(models: Path, scenes: Path, steps: int) -> None:
    """Writes into `models` tiny text encoders of few tokens, and an autoencoder that is trained for `steps` steps on
    crops of the scenes. The autoencoder's shift and scale are measured on these crops."""
    import torch
    from diffusers import AutoencoderKL

    models.mkdir(parents=True)
    tiny_models.save_models(models)
    photographs_show.few_tokens(models)
    (models / "vae" / "config.json").unlink()
    rng, crops = np.random.default_rng(1), []
    for path in sorted(scenes.glob("*.png"))[:600]:
        pixels = np.asarray(Image.open(path))
        top, left = (rng.integers(0, side - 32 + 1) for side in pixels.shape[:2])
        crops.append(pixels[top : top + 32, left : left + 32])
    crops = np.stack(crops)
    photographs_show.train_autoencoder(models, crops, steps, channels=(8, 16), latent_channels=4, batch=16)
    model = AutoencoderKL.from_pretrained(models / "vae")
    with torch.inference_mode():
        latents = model.encode(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode()
    model.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))
    model.save_pretrained(models / "vae")


def step_flops(low: Path, high: Path, batch: int) -> tuple[float, float]:
    """Returns (FLOPs of a training step at low resolution, FLOPs of the mean step in the buckets). `low` and `high` are
    the config files."""
    from rfjax import config_files
    from rfjax.data.corpus import load_corpus
    from rfjax.models.flops import training_flops

    found = []
    for path in (low, high):
        run = config_files.load(path)
        corpus = load_corpus(run.data, 0)
        counts = getattr(corpus, "training", (1,))
        found.append(
            batch
            * sum(
                count * training_flops(run.model, part.shapes) for part, count in zip(corpus.parts, counts, strict=True)
            )
            / sum(counts)
        )
    return tuple(found)


def losses(run: Path) -> np.ndarray:
    """Each validation image's loss, in the order of ids: bucket after bucket."""
    records = [json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")]
    (record,) = [record for record in records if record["key"]["evaluation"] == "validation"]
    return np.array(record["extra"]["example_losses"])


def mean_and_error(values: np.ndarray) -> dict:
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def compare(runs: Path, corpus: Path) -> dict:
    """Returns each run's loss, by bucket and over all images, and the paired differences: the loss of each run from
    scratch minus the child's."""
    buckets = manifest.read(corpus).buckets
    counts = [bucket.images["validation"] for bucket in buckets]
    of = {name: losses(runs / name) for name in RUNS}
    spans, start = {"all": slice(None)}, 0
    for bucket, count in zip(buckets, counts, strict=True):
        spans["x".join(map(str, bucket.latents[1:3]))] = slice(start, start + count)
        start += count
    assert all(len(own) == start for own in of.values())
    return {
        "validation_images": dict(zip(spans, (start, *counts), strict=True)),
        "losses": {
            name: {span: mean_and_error(own[where]) for span, where in spans.items()} for name, own in of.items()
        },
        "less_the_child": {
            name: {span: mean_and_error(of[name][where] - of["child"][where]) for span, where in spans.items()}
            for name in RUNS[1:]
        },
    }


def picture(folder: Path, captions: list[str], sides: list[tuple[int, int]]) -> Image.Image:
    """Rows: runs and buckets; columns: captions."""
    rows = [(name, height, width) for name in RUNS for height, width in sides]
    edge, gap, left, top = 2 * max(max(side) for side in sides), 6, 100, 36
    sheet = Image.new("RGB", (left + len(captions) * (edge + gap), top + len(rows) * (edge + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        draw.text((left + column * (edge + gap), 6), caption.replace(", ", ",\n"), fill="black")
    for row, (name, height, width) in enumerate(rows):
        tiles = photographs_show.sampled_images(
            folder / f"{name}-{height}x{width}.png", len(captions), 2 * height, 2 * width
        )
        draw.text((4, top + row * (edge + gap)), f"{name}\n{height}x{width}", fill="black")
        for column in range(len(captions)):
            sheet.paste(Image.fromarray(tiles[column]), (left + column * (edge + gap), top + row * (edge + gap)))
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1200)
    parser.add_argument("--autoencoder-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=1200, help="at low resolution")
    parser.add_argument("--child-steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    clock = photographs_show.Clock(args.folder / "seconds.json")
    rfjax, scenes, models, runs = (
        photographs_show.rfjax,
        args.folder / "scenes",
        args.folder / "models",
        args.folder / "runs",
    )
    if not scenes.is_dir():
        clock.of("scenes", lambda: write_scenes(scenes, args.scenes))
    if not (models / "vae" / "config.json").is_file():
        clock.of("autoencoder", lambda: make_models(models, scenes, args.autoencoder_steps))
    for name, sides in (("corpus-low", f"--size={LOW}"), ("corpus-high", f"--buckets={BUCKETS}")):
        if not (args.folder / name / "manifest.json").is_file():
            clock.of(
                name,
                partial(
                    rfjax,
                    "prepare",
                    scenes,
                    f"--out={args.folder / name}",
                    f"--models={models}",
                    sides,
                    "--encoders=clip_l,clip_g",
                    "--validation-share=0.12",
                    "--batch-size=32",
                ),
            )
    rfjax("inspect", args.folder / "corpus-high")
    low, high = manifest.read(args.folder / "corpus-low"), manifest.read(args.folder / "corpus-high")

    def write_config(name, corpus, steps):
        path = args.folder / f"{name}.py"
        path.write_text(
            CONFIG.format(
                name=name,
                tokens=corpus.side // 2,
                corpus=str(corpus.folder),
                side=corpus.side,
                context=TOKENS,
                steps=steps,
                batch=args.batch,
                warmup=min(50, steps // 4),
                examples=corpus.count("validation"),
            )
        )
        return path

    a, b = step_flops(write_config("low", low, args.steps), write_config("child", high, args.child_steps), args.batch)
    steps = {
        "low": args.steps,
        "child": args.child_steps,
        "child_compute": args.child_steps,
        "equal_compute": args.child_steps + round(args.steps * a / b),
    }
    for name, count in steps.items():
        init = [f"--init={runs / 'low'}@{args.steps}"] if name == "child" else []
        config = write_config(name, low if name == "low" else high, count)
        clock.of(name, partial(rfjax, "train", f"--config={config}", f"--workdir={runs / name}", *init))

    sides = [bucket.latents[1:3] for bucket in high.buckets]
    captions = ["red square", "blue ring, yellow triangle", "green cross, purple bar", "white pillar"]
    for name in RUNS:
        for height, width in sides:
            rfjax(
                "sample",
                runs / name,
                *(f"--prompt={caption}" for caption in captions),
                "--samples=1",
                f"--latent-size={height}x{width}",
                f"--out={args.folder / f'{name}-{height}x{width}.png'}",
            )
    found = compare(runs, args.folder / "corpus-high") | {
        "steps": steps,
        "flops": {name: (a if name == "low" else b) * count for name, count in steps.items()},
        "seconds": clock.seconds,
    }
    print(json.dumps(found, indent=1))
    (args.folder / "found.json").write_text(json.dumps(found, indent=1) + "\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        picture(args.folder, captions, sides).save(args.out)


if __name__ == "__main__":
    main()
