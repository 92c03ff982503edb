"""Measures what share of a training run the devices wait for the host: for data, and for metrics.

    python analysis/benchmarks/host_stalls.py [--steps 100] [--out FILE.json]

The trainer itself (`rfjax.training.loop.train`) runs the default study's depth 2 on the CPU, in a temporary folder. In
each step these parts of its loop are timed:

- data: waiting for a batch from the loader;
- placing: putting the batch on the devices;
- metrics: rows, progress and the check of metrics, without the wait for the step before;
- devices: waiting for the step before. Metrics are read one step late, so the devices compute during this wait;
- rest: dispatching the step, and the loop itself.

During all parts but `devices`, the devices run the step that was dispatched before. They are idle only if they finish
it before the host comes to wait for it, so that this wait takes no time. In such a turn of the loop, all time of the
host counts as a stall. The result is therefore an upper bound.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import date
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs" / "shapes.py"
WARMUP = 20


class Clocks:
    """(name, start, end) of every call of some functions, in seconds."""

    def __init__(self):
        self.events = []

    def around(self, name, function):
        def timed(*arguments, **settings):
            began = time.perf_counter()
            try:
                return function(*arguments, **settings)
            finally:
                self.events.append((name, began, time.perf_counter()))

        return timed


def turns(events) -> list[dict[str, float]]:
    """Seconds of each turn of the loop by what they went to; a turn begins where a batch is asked for."""
    starts = [began for name, began, _ in events if name == "data"]
    found = []
    for start, end in zip(starts, starts[1:], strict=False):
        turn = {"all": end - start} | {name: 0.0 for name in ("data", "placing", "observe", "devices")}
        for name, began, ended in events:
            if start <= began < end:
                turn[name] += ended - began
        turn["metrics"] = turn.pop("observe") - turn["devices"]
        turn["rest"] = turn["all"] - sum(turn[name] for name in ("data", "placing", "metrics", "devices"))
        found.append(turn)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="after a warm-up of 20")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()

    import jax

    from rfjax import config_files
    from rfjax.training import loop, monitor
    from rfjax.training.run import make_run

    last = WARMUP + args.steps
    config = config_files.load(
        CONFIG, {"model.depth": 2, "model.hidden": 128, "train.steps": last + 2, "train.checkpoint_every": 10 * last}
    )
    clocks, batches = Clocks(), loop.batches

    def timed_batches(*arguments, **settings):
        iterator = batches(*arguments, **settings)
        return iter(clocks.around("data", lambda: next(iterator, None)), None)

    loop.batches = timed_batches
    monitor.Monitor.observe = clocks.around("observe", monitor.Monitor.observe)
    jax.device_get = clocks.around("devices", jax.device_get)
    jax.device_put = clocks.around("placing", jax.device_put)
    with tempfile.TemporaryDirectory() as folder:
        loop.train(make_run(config, Path(folder) / "run"))

    timed = turns(clocks.events)[WARMUP : WARMUP + args.steps]
    wall = sum(turn["all"] for turn in timed)
    shares = {
        name: sum(turn[name] for turn in timed) / wall for name in ("data", "placing", "metrics", "devices", "rest")
    }
    nothing = 0.01 * wall / len(timed)
    stalled = [turn for turn in timed if turn["devices"] < nothing]
    record = {
        "date": str(date.today()),
        "steps": len(timed),
        "seconds": wall,
        "host": shares,
        "turns_that_may_have_stalled": len(stalled),
        "devices_stalled_at_most": sum(turn["all"] for turn in stalled) / wall,
        "cores": os.cpu_count(),
        "load_average_at_end": os.getloadavg(),
        "jax": jax.__version__,
    }
    print(f"{len(timed)} steps, {wall:.1f} s; of the host's time:")
    for name, share in shares.items():
        print(f"  {name:<10}{share:8.2%}")
    print(f"the devices waited at most {record['devices_stalled_at_most']:.2%} of the time, in {len(stalled)} turns")
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
