"""Measures the peak host memory of `rfjax export`, and compares it with the largest stored array.

    python analysis/benchmarks/export_memory.py --folder /a/disk/with/room --width 608 1216

For each width, a run of depth 38 (the paper's largest, with all its 923 tensors) with random weights is written to
--folder, and exported in bfloat16 by a separate process. The kernel reports the peak resident size of this process. It
should be at most 2 x the largest stored array + 1 GiB. Arrays grow with width^2, so two widths give the slope.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

GIB = 2**30


def write_run(folder: Path, width: int) -> None:
    """A run's folder with one checkpoint of float32 noise."""
    import jax
    import numpy as np

    from rfjax import config as schema
    from rfjax.data.corpus import load_corpus
    from rfjax.models.backbone import make_backbone
    from rfjax.training import checkpoint

    config = schema.from_dict(
        {
            "model": {"depth": 38, "hidden": width, "head_size": width // 38, "qk_norm": True},
            "data": {
                "corpus": "random",
                "image_size": 32,
                "channels": 16,
                "context_tokens": 154,
                "context_size": 4096,
                "pooled_size": 2048,
            },
            "evaluation": {"geneval": {"prompts_per_task": 0}},
        }
    )
    backbone = make_backbone(config.model, load_corpus(config.data, 0).shapes)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32)), shapes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(schema.to_dict(config)))
    (folder / "run.json").write_text(json.dumps({"run": f"random-{width}"}))
    facts = {"schema": 1, "step": 1, "images": 0, "flops": 0.0, "train_seconds": 0.0}
    with checkpoint.Checkpoints(folder, keep_last=1, kept=lambda step: False) as saving:
        saving.save(checkpoint.Weights(params, params), 1, facts)


def export(folder: Path, out: Path) -> dict:
    """Exports and says what that took; run in a process of its own."""
    import jax

    from rfjax.interop.exporting import export_run
    from rfjax.training.checkpoint import stored_shapes

    began = time.monotonic()
    largest = max(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored_shapes(folder, 1)["ema"])
    )
    export_run(folder, layout="diffusers", out=out, dtype="bf16")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    written = sum(path.stat().st_size for path in out.iterdir())
    return {
        "peak_bytes": peak,
        "largest_array_bytes": largest,
        "written_bytes": written,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="needs 10 bytes a parameter")
    parser.add_argument("--width", type=int, nargs="+", default=[608, 1216], help="multiples of 38 * 4")
    parser.add_argument("--child", choices=("write", "export"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "write":
        return write_run(args.folder, args.width[0])
    if args.child == "export":
        return print(json.dumps(export(args.folder / "run", args.folder / "out")))
    rows = []
    for width in args.width:
        folder = args.folder / f"export-memory-{width}"
        try:
            subprocess.run(
                [sys.executable, __file__, "--child=write", f"--folder={folder / 'run'}", f"--width={width}"],
                check=True,
            )
            command = [sys.executable, __file__, "--child=export", f"--folder={folder}"]
            row = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        row = {"width": width, **row, "bound_bytes": 2 * row["largest_array_bytes"] + GIB}
        print(
            json.dumps({key: round(value / GIB, 3) if key.endswith("bytes") else value for key, value in row.items()}),
            flush=True,
        )
        rows.append(row)
    record = Path(__file__).parent / f"export_memory_{date.today()}.json"
    record.write_text(
        json.dumps({"command": "export_memory.py --width " + " ".join(map(str, args.width)), "rows": rows}, indent=1)
        + "\n"
    )
    print(f"record: {record}")


if __name__ == "__main__":
    main()
