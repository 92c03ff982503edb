"""Measures how many samples a second one core loads, beside the number that a v5p host of four chips needs.

    python analysis/benchmarks/loader_speed.py --folder /a/disk/with/room [--out FILE.json]

Sizes are real: latents of 32x32x16, 154 text tokens of size 4096 and a pooled vector of 2048. `arrayrecord` reads
shards in random order by Grain, stored in float16 as in a prepared corpus, and makes float32 batches. `random` is the
corpus that draws its numbers. Rates are per second of processor time of all threads together, which other programs on
the machine hardly affect. The shards are in the page cache; in real use, a disk or a bucket must deliver the bytes,
too.

The number that a host needs is computed for a step at the chips' peak, which no real step reaches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from datetime import date
from pathlib import Path

import numpy as np

EXAMPLES, BATCH, ROUNDS = 512, 32, 3
SIZES = {"latents": (32, 32, 16), "context": (154, 4096), "pooled": (2048,)}
HOST_CHIPS = 4
PAPER = Path(__file__).parents[2] / "configs" / "sd3_depth.py"


def write_shard(path: Path) -> int:
    """Random examples as one ArrayRecord file; returns the bytes of one."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = np.random.default_rng(0)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(EXAMPLES):
        record = b"".join(
            rng.standard_normal(shape, np.float32).astype(np.float16).tobytes() for shape in SIZES.values()
        )
        writer.write(record)
    writer.close()
    return len(record)


def decode(records: list[bytes]) -> dict[str, np.ndarray]:
    """A float32 batch; each record is converted straight into its row."""
    batch = {name: np.empty((len(records), *shape), np.float32) for name, shape in SIZES.items()}
    for row, record in enumerate(records):
        start = 0
        for name, shape in SIZES.items():
            count = int(np.prod(shape))
            batch[name][row] = np.frombuffer(record, np.float16, count, start).reshape(shape)
            start += 2 * count
    return batch


def rate(batches) -> dict:
    """Samples a second of processor time and of the clock; the best of some rounds."""
    found = []
    for _ in range(ROUNDS):
        cpu, wall, count = time.process_time(), time.perf_counter(), 0
        for batch in batches():
            count += len(batch["latents"] if isinstance(batch, dict) else batch.latents)
        found.append((count / (time.process_time() - cpu), count / (time.perf_counter() - wall)))
    return {"samples_per_core_second": max(f[0] for f in found), "samples_per_second": max(f[1] for f in found)}


def arrayrecord_batches(path: Path):
    import grain.python as grain

    source = grain.ArrayRecordDataSource([str(path)])
    order = np.random.default_rng(1).permutation(EXAMPLES)
    load = lambda step: decode(source.__getitems__(order[step * BATCH : (step + 1) * BATCH].tolist()))  # noqa: E731
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(EXAMPLES // BATCH).map(load).to_iter_dataset(options))


def random_batches():
    from rfjax import config_files
    from rfjax.data.corpus import load_corpus
    from rfjax.data.loader import batches

    config = config_files.load(PAPER)
    return batches(load_corpus(config.data, 0), batch_size=BATCH, start_step=0, stop_step=2)


def needs() -> list[dict]:
    """Images a second of a v5p host for each depth, at the compute limit of the plan."""
    from rfjax.plan.estimate import estimate
    from rfjax.plan.targets import parse_target
    from rfjax.study.study import load_study

    target = parse_target("v5p-256")
    found = []
    for point in load_study(PAPER, {}).points:
        limits = estimate(point.config, target).roofline
        hosts = target.chips / HOST_CHIPS
        found.append(
            {"point": point.id, "images_per_second_of_a_host": point.config.train.batch_size / limits.compute / hosts}
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="needs 0.7 GB")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    folder = args.folder / "loader-speed"
    folder.mkdir(parents=True)
    try:
        size = write_shard(folder / "shard.array_record")
        rates = {
            "arrayrecord": rate(lambda: arrayrecord_batches(folder / "shard.array_record")),
            "random": rate(random_batches),
        }
    finally:
        shutil.rmtree(folder)
    stored = rates["arrayrecord"]["samples_per_core_second"]
    for name, found in rates.items():
        print(
            f"{name}: {found['samples_per_core_second']:,.0f} samples per core-second "
            f"({found['samples_per_second']:,.0f} by the clock)"
        )
    print(
        f"a stored example has {size / 1e6:.2f} MB\n\npoint     images/s of a v5p host   cores to load them   "
        "GB/s to read"
    )
    rows = needs()
    for row in rows:
        need = row["images_per_second_of_a_host"]
        row |= {"cores": need / stored, "bytes_per_second": need * size}
        print(f"{row['point']:<8}{need:>24,.0f}{row['cores']:>21.1f}{row['bytes_per_second'] / 1e9:>15.2f}")
    if args.out:
        record = {"date": str(date.today()), "bytes_of_an_example": size, "rates": rates, "needs": rows}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
