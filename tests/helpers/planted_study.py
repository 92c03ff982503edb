"""A made-up study on disk: run folders as training and evaluation would have left them.

Losses follow a planted law of compute, scores follow the loss, and everything is drawn from a
seeded generator, so that tests know what the table, the fits and the report must say.
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np

from rfjax.data.geneval_names import TASKS
from rfjax.evaluation import records

E, A, B = 0.045, 2.0e3, 0.34  # the planted law: loss = E + A * flops^-B
SAMPLER = "euler-20-cfg4-shift1"
LEVELS = tuple(i / 8 for i in range(1, 9))
PROMPTS = (
    "a photo of a green square",
    "a photo of two blue squares",
    "a photo of a star left of a ring",
    'a photo of a <b>cross</b> & a "heart"',
)
COLOURS = {"red": (214, 39, 40), "blue": (31, 119, 180), "star": (255, 200, 0), "green": (44, 160, 44)}
# (run, depth, steps, learning rate)
FINISHED = (
    ("depth1-short", 1, 500, 3e-3),
    ("depth1", 1, 2000, 3e-3),
    ("depth2-short", 2, 1000, 3e-3),
    ("depth2", 2, 2000, 3e-3),
    ("depth3-short", 3, 1200, 3e-3),
    ("depth3", 3, 2000, 3e-3),
    ("depth4", 4, 2000, 3e-3),
)


def planted_loss(flops):
    return E + A * np.asarray(flops, float) ** -B


def png(pixels) -> bytes:
    """A PNG of uint8 pixels [height, width, 3]."""
    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + pixels[row].tobytes() for row in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def params_of(depth):
    width = 32 * depth
    return 36 * depth * width**2 + 600 * width


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def facts(run, depth, steps, learning_rate=3e-3, seed=0, **more):
    params = params_of(depth)
    return {
        "schema": 1,
        "run": run,
        "study": "planted",
        "point": run,
        "depth": depth,
        "hidden": 32 * depth,
        "heads": depth,
        "seed": seed,
        "learning_rate": learning_rate,
        "params": params,
        "flops_per_image": 3 * 2 * 64 * params,
        "flops_forward_per_image": 2 * 64 * params,
        "batch_size": 64,
        "steps": steps,
        "corpus": "shapes",
        "corpus_fingerprint": "f00d",
        "code_hash": "abc123",
        "parent": None,
        "hardware": {"platform": "cpu", "device_kind": "cpu", "devices": 1, "processes": 1},
        "jax_version": "0.10.2",
    } | more


def put(folder: Path, run, step, evaluation, values, *, images=0, flops=0.0, extra=None, **key) -> None:
    """Write an evaluation record into a run's folder."""
    key = records.record_key(run=run, step=step, evaluation=evaluation, **{"corpus": "shapes"} | key)
    times = {"seconds": 1.5, "train_seconds": step * 0.05}
    records.write_record(folder, records.make_record(key, values, images=images, flops=flops, extra=extra, **times))


def value(metric, item, number, spread, n):
    number, spread = float(number), float(spread)
    return records.Measured.within(metric=metric, item=item, value=number, stderr=spread, n=n)


def loss_values(mean):
    """A hump over t whose mean without t = 1 is exactly `mean`."""
    shape = np.array([0.6 + 1.6 * t * (1 - t) + (2.5 if t == 1 else 0.0) for t in LEVELS])
    shape = shape / shape[:-1].mean()
    levels = [
        value("loss", f"t={t:g}", float(mean * s), 0.004 * mean * s, 512) for t, s in zip(LEVELS, shape, strict=True)
    ]
    return [value("loss", "mean", float(mean), 0.004 * mean, 512), *levels]


def example_losses(mean, n=64, spread=0.3):
    """Losses per example of which every run has the same easy and hard ones."""
    share = np.random.default_rng(0).standard_normal(n)
    share = spread * (share - share.mean()) / share.std(ddof=1)
    return {"example_ids_sha1": "same", "example_losses": (mean * (1 + share)).tolist()}


def score_values(metric, overall, n=40):
    hardness = (1.6, 1.1, 0.8, 1.3, 0.5, 0.7)
    scores = [float(np.clip(overall * h, 0, 1)) for h in hardness]
    items = [
        value(metric, task, score, 0.5 * (score * (1 - score) / n) ** 0.5 + 1e-3, 4 * n)
        for task, score in zip(TASKS, scores, strict=True)
    ]
    return [value(metric, "overall", float(np.mean(scores)), 0.012, 24 * n), *items]


def score_of(loss):
    return float(np.clip(0.75 - 7.5 * (loss - E), 0.02, 0.9))


def sheet(rng, blur):
    """A strip of 4 tiles, 16 pixels each: squares drowned in noise of strength `blur`."""
    tiles = []
    for colour in COLOURS.values():
        tile = np.full((16, 16, 3), 235.0)
        tile[4:12, 4:12] = colour
        tiles.append(tile + rng.normal(0, 220 * blur, tile.shape))
    return np.clip(np.concatenate(tiles, axis=1), 0, 255).astype(np.uint8)


def write_run(
    folder: Path,
    run,
    depth,
    steps,
    learning_rate=3e-3,
    *,
    noise=0.0,
    penalty=1.0,
    checkpoints=(),
    seed=0,
    samples=True,
):
    """A finished run: final loss on the planted law times (1 + noise) times penalty."""
    rng = np.random.default_rng([depth, steps, seed])
    about = facts(run, depth, steps, learning_rate, seed)
    write_json(folder / "run.json", about)
    write_json(folder / "status.json", {"state": "done", "step": steps, "message": ""})
    for step in (*checkpoints, steps):
        images = step * 64
        flops = images * about["flops_per_image"]
        # Before the end the rate is not annealed, and the loss stands above the law.
        loss = float(planted_loss(flops)) * (1 + noise) * penalty * (1.0 if step == steps else 1.08)
        common = {"images": images, "flops": float(flops)}
        for weights, factor in (("ema", 1.0), ("raw", 1.02)):
            put(
                folder,
                run,
                step,
                "validation",
                loss_values(loss * factor),
                weights=weights,
                grid="paper-8",
                extra=example_losses(loss * factor),
                **common,
            )
        if step != steps:
            continue
        overall = score_of(loss) + float(rng.normal(0, 0.004))
        values = score_values("geneval", overall) + score_values("geneval_held_out", 0.8 * overall, 8)
        values += score_values("geneval_seen", 1.05 * overall, 32)
        at = {"weights": "ema", "sampler": SAMPLER, **common}
        right = rng.binomial(4, np.clip(overall, 0.0, 1.0), len(TASKS) * 10).tolist()
        prompt_scores = [[TASKS[i // 10], count, 4] for i, count in enumerate(right)]
        put(folder, run, step, "geneval", values, extra={"prompt_scores": prompt_scores}, **at)
        ceiling = [value("geneval", item, 0.99 + 0.001 * i, 0.002, 240) for i, item in enumerate(("overall", *TASKS))]
        put(folder, run, -1, "geneval_ceiling", ceiling)
        for floor, level in (("shuffled", 0.2), ("null", 0.05)):
            put(folder, run, step, f"geneval_floor_{floor}", score_values("geneval", level), **at)
        if samples:
            (folder / "samples").mkdir(exist_ok=True)
            (folder / "samples/final.png").write_bytes(png(sheet(rng, loss)))
            extra = {"png": "samples/final.png", "prompts": list(PROMPTS), "tile": 16}
            put(folder, run, step, "samples", [], extra=extra, **at)
    lines = [json.dumps({"step": s, "loss": 0.05 + 1.5 / (1 + s) ** 0.5}) for s in range(0, steps + 1, 20)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99')  # killed while writing


def write_study(root: Path, *, noise=0.004, finished=FINISHED, failed=True, **options) -> list[Path]:
    """The run folders of a study with one failed run."""
    rng = np.random.default_rng(7)
    folders = []
    for run, depth, steps, rate in finished:
        checkpoints = tuple(range(400, steps, 400)) if run == "depth3" else ()
        write_run(
            root / run,
            run,
            depth,
            steps,
            rate,
            noise=noise * rng.standard_normal(),
            checkpoints=checkpoints,
            **options,
        )
        folders.append(root / run)
    if failed:
        write_json(root / "depth5" / "run.json", facts("depth5", 5, 2000))
        message = "16 steps in a row were not finite at step 1200 (largest norm: <blocks/image/attention>)"
        write_json(root / "depth5" / "status.json", {"state": "diverged", "step": 1200, "message": message})
        folders.append(root / "depth5")
    return folders
