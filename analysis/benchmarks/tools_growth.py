"""Measures how the time and memory of collecting, `rfjax fit` and `rfjax report` grow with the number of runs.

    python analysis/benchmarks/tools_growth.py --folder DIR [--runs 10 100 1000] [--out record.json] [--figure FILE.svg]

For each number of runs, an artificial study's folder is made with the files that the default study has. These are
validation losses of both weights at four checkpoints (512 examples, eight levels of t) and of a second grid at the last
checkpoint, GenEval by prompt (240 prompts) with its floors and ceiling, sample sheets, and a training curve. Every
tenth run also has GenEval at three numbers of sampling steps. Losses follow a law of compute with noise; scores follow
the loss.

Each command is a separate process. Processor time (user and system, of all threads) is measured beside wall time, since
other work may share the machine; memory is the peak resident size. The slope is that of log processor time against log
runs, by least squares. It includes the time that a command takes to start.
"""

import argparse
import json
import math
import os
import platform
import struct
import subprocess
import sys
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rfjax.data.geneval_names import TASKS
from rfjax.evaluation import records
from rfjax.files import write_whole

DEPTHS, RATES, SEEDS = tuple(range(1, 13)), (1e-3, 2e-3, 4e-3), (0, 1)
EXAMPLES, PROMPTS_PER_TASK, IMAGES = 512, 40, 4
LEVELS = tuple(i / 8 for i in range(1, 9))
SAMPLER = "euler-20-cfg4-shift1"
STEPPED = ("euler-50-cfg4-shift1-of50", "euler-20-cfg4-shift1-of50", "euler-5-cfg4-shift1-of50")
COLLECT = "import sys; from rfjax.results.merge import collect; from rfjax.results.run_files import run_folders; " + (
    "collect(run_folders(sys.argv[1]), sys.argv[1] + '/results')"
)


def make_study(root: Path, runs: int) -> None:
    """The folders of `runs` finished runs."""
    rng = np.random.default_rng(runs)
    share = rng.standard_normal(EXAMPLES)  # hard and easy examples, the same to every run
    per_depth = math.ceil(runs / len(DEPTHS))
    for number in range(runs):
        depth = DEPTHS[number % len(DEPTHS)]
        place = number // len(DEPTHS)
        rate, seed = RATES[place % len(RATES)], SEEDS[place // len(RATES) % len(SEEDS)]
        budget = place // (len(RATES) * len(SEEDS))
        steps = int(round(1000 * 4 ** (budget / max(1, per_depth // (len(RATES) * len(SEEDS))))))
        write_run(root / f"run{number:04d}", depth, steps, rate, seed, stepped=number % 10 == 0, rng=rng, share=share)


def write_run(folder: Path, depth, steps, rate, seed, *, stepped, rng, share) -> None:
    """One finished run."""
    hidden = 64 + 32 * depth
    params = 36 * depth * hidden**2 + 600 * hidden
    per_image, run = 3 * 2 * 64.0 * params, folder.name
    facts = {
        "schema": 1,
        "run": run,
        "study": "growth",
        "point": run,
        "depth": depth,
        "hidden": hidden,
        "heads": depth + 2,
        "seed": seed,
        "learning_rate": rate,
        "params": params,
        "flops_per_image": per_image,
        "flops_forward_per_image": per_image / 3,
        "batch_size": 32,
        "steps": steps,
        "corpus": "shapes",
        "corpus_fingerprint": "f00d",
        "code_hash": "abc123",
        "parent": None,
        "jax_version": "0.10.2",
        "hardware": {"platform": "cpu", "device_kind": "cpu", "devices": 2, "processes": 1},
    }
    config = {"formulation": "rf/lognorm(0.00,1.00)", "model": {"backbone": "mmdit"}, "train": {"schedule": "wsd"}}
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "status.json").write_text(json.dumps({"state": "done", "step": steps, "message": ""}))
    lines = (json.dumps({"step": s, "loss": 0.05 + 1.5 / (1 + s) ** 0.5}) for s in range(0, steps + 1, 20))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    noise = 0.004 * rng.standard_normal() + 0.05 * math.log(rate / 2e-3) ** 2
    for step in sorted({steps // 4, steps // 2, 3 * steps // 4, steps}):
        images = 32 * step
        law = 0.04 + 60 * params**-0.5 + 20.0 * images**-0.6
        mean = law * (1 + noise) * (1 if step == steps else 1.08)
        at = {"run": run, "step": step, "corpus": "shapes"}
        spent = {"images": images, "flops": images * per_image, "seconds": 1.5, "train_seconds": 0.05 * step}
        for weights, factor in (("ema", 1.0), ("raw", 1.02)):
            for grid in ("paper-8", "midpoints-8")[: 1 + (step == steps)]:
                key = records.record_key(evaluation="validation", weights=weights, grid=grid, **at)
                own = mean * factor * (1 + 0.3 * share + 0.03 * rng.standard_normal(EXAMPLES))
                extra = {"example_ids_sha1": "same", "example_losses": records.json_numbers(own)}
                records.write_record(folder, records.make_record(key, _losses(own, rng), extra=extra, **spent))
        if step == steps:
            _write_scores(folder, mean, at | {"weights": "ema"}, spent, stepped, rng)


def _write_scores(folder, mean, at, spent, stepped, rng) -> None:
    """GenEval of the last checkpoint, the floors and the ceiling, sampling steps and the sheet."""
    chance = np.clip(0.9 - 2.5 * (mean - 0.04) + 0.01 * rng.standard_normal(), 0.02, 0.97)

    def put(evaluation, chance, sampler=SAMPLER, metrics=("geneval",), extra=None, **more):
        right = rng.binomial(IMAGES, chance, (len(TASKS), PROMPTS_PER_TASK))
        rows = [[task, int(count), IMAGES] for task, own in zip(TASKS, right, strict=True) for count in own]
        values = [value for metric in metrics for value in _scores(metric, right)] + more.pop("values", [])
        key = records.record_key(evaluation=evaluation, sampler=sampler, **at | more)
        extra = {"prompt_scores": rows} if extra is None else extra
        records.write_record(folder, records.make_record(key, values, extra=extra, **spent))

    put("geneval", chance, metrics=("geneval", "geneval_held_out", "geneval_seen"))
    put("geneval_floor_shuffled", 0.2, extra={})
    put("geneval_floor_null", 0.05, extra={})
    ceiling = [records.Measured.within(metric="geneval", item=i, value=0.99, stderr=0.002, n=240) for i in _ITEMS]
    key = records.record_key(run=at["run"], step=-1, evaluation="geneval_ceiling", corpus="shapes")
    records.write_record(folder, records.make_record(key, ceiling))
    (folder / "samples").mkdir()
    (folder / "samples/final.png").write_bytes(_png(rng.integers(0, 256, (16, 64, 3), dtype=np.uint8)))
    sheet = {"png": "samples/final.png", "prompts": ["a red square", "two rings", "a star", "a cross"], "tile": 16}
    key = records.record_key(evaluation="samples", sampler=SAMPLER, **at)
    records.write_record(folder, records.make_record(key, [], extra=sheet, **spent))
    for sampler, loss in zip(STEPPED, (0.0, 0.05, 0.3), strict=True) if stepped else ():
        more = [
            records.Measured.within(metric=metric, value=value, stderr=0.01, n=960)
            for metric, value in (("sampling_path_length", 1.1 + loss), ("sampling_distance", loss))
        ]
        put("sampling_steps", chance * (1 - loss), sampler, ("sampling",), values=more)


_ITEMS = ("overall", *TASKS)


def _losses(own, rng):
    """The mean over examples, and a loss for each level of t."""
    stderr, mean = float(own.std() / EXAMPLES**0.5), float(own.mean())
    shape = np.array([0.6 + 1.6 * t * (1 - t) + (2.5 if t == 1 else 0.0) for t in LEVELS])
    levels = mean * shape / shape[:-1].mean() * (1 + 0.01 * rng.standard_normal(len(LEVELS)))
    named = {"mean": mean} | {f"t={t:g}": float(level) for t, level in zip(LEVELS, levels, strict=True)}
    return [
        records.Measured.within(metric="loss", item=item, value=value, stderr=stderr, n=EXAMPLES)
        for item, value in named.items()
    ]


def _scores(metric, right):
    """Overall and per task, from the correct images of each prompt [tasks, prompts]."""
    tasks = right.mean(axis=1) / IMAGES
    spread = right.std(axis=1) / IMAGES / PROMPTS_PER_TASK**0.5 + 1e-3
    found = [(float(tasks.mean()), float((spread**2).sum() ** 0.5 / len(TASKS))), *zip(tasks, spread, strict=True)]
    n = PROMPTS_PER_TASK * IMAGES
    return [
        records.Measured.within(metric=metric, item=item, value=float(value), stderr=float(error), n=n)
        for item, (value, error) in zip(_ITEMS, found, strict=True)
    ]


def _png(pixels) -> bytes:
    """A PNG of uint8 pixels [height, width, 3]."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def measure(command) -> dict:
    """Run a command to its end: its seconds of processor and wall, and its peak memory in MB."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        said = child.stderr.read().decode(errors="replace")
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}:\n{said[-2000:]}")
    wall = time.perf_counter() - start
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    return {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "peak_mb": round(peak)}


def commands(root: Path) -> dict[str, list[str]]:
    """What is measured, by name."""
    rfjax = [sys.executable, "-m", "rfjax"]
    return {
        "collect": [sys.executable, "-c", COLLECT, str(root)],
        "fit": [*rfjax, "fit", str(root / "results"), "--metric", "overall", "--out", str(root / "fits.json")],
        "report": [*rfjax, "report", str(root / "results"), "--out", str(root / "report")],
    }


def slope(runs, seconds) -> float:
    """The slope of log seconds against log runs."""
    return float(np.polyfit(np.log(runs), np.log(seconds), 1)[0])


def table(record) -> list[str]:
    """The record as lines of Markdown."""
    lines = ["| runs | command | processor s | wall s | peak MB |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        cells = (row["runs"], row["command"], row["cpu_s"], row["wall_s"], row["peak_mb"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines + [f"slope of {name}: {value:.2f}" for name, value in record["slopes"].items()]


def draw(record, path: Path) -> None:
    """Processor seconds against runs, a line a command."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    for name, value in record["slopes"].items():
        own = [row for row in record["rows"] if row["command"] == name]
        x, y = ([row[key] for row in own] for key in ("runs", "cpu_s"))
        axis.loglog(x, y, marker="o", ms=4, label=f"{name}: slope {value:.2f}")
    axis.set(xlabel="runs", ylabel="processor seconds")
    axis.grid(color="#e4e4e4", lw=0.5)
    axis.legend(frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the studies are made; kept")
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--only", nargs="+", default=["collect", "fit", "report"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    rows = []
    for runs in args.runs:
        root = args.folder / f"runs{runs}"
        if not root.exists():
            make_study(root, runs)
        for name, command in commands(root).items():
            if name in args.only:
                rows.append({"runs": runs, "command": name} | measure(command))
                print(rows[-1], flush=True)
    slopes = {}
    for name in args.only:
        own = [row for row in rows if row["command"] == name]
        if len(own) > 1:
            slopes[name] = slope([row["runs"] for row in own], [row["cpu_s"] for row in own])
    record = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "rows": rows,
        "slopes": slopes,
    }
    print("\n".join(table(record)))
    if args.out:
        write_whole({args.out: json.dumps(record, indent=1) + "\n"})
    if args.figure:
        draw(record, args.figure)


if __name__ == "__main__":
    main()
