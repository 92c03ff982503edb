"""Measures how much faster variants train together, in one program of many members, than one after another.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python analysis/benchmarks/together.py [--members 16] [--out
    FILE.json]

The variants are the first formulations of SD3's list, in the small network of configs/formulations.py, on all devices.
"Together" is one program with the members split over the devices. "Alone" is a separate program for each variant with
its batch split over the devices, as `rfjax study` trains a point. Rounds of both alternate, so that other load of the
machine affects both. Compilation is measured once; alone, for three variants. The floor is the time that the formula's
matrix products would take at the rate of square products, measured on the same devices in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path

import jax
import numpy as np

from rfjax.bench.peak import matmul_flops_per_second
from rfjax.config_files import load
from rfjax.data.loader import batch_of_step
from rfjax.flow.formulation import PAPER
from rfjax.models.flops import recompute_flops
from rfjax.training import hardware
from rfjax.training.cohort_step import cohort_mesh, make_cohort_step, stack
from rfjax.training.loss import run_keys
from rfjax.training.mesh import places_here, put_batch, shardings
from rfjax.training.optimizer import make_optimizer
from rfjax.training.program import lower_train_step, state_shapes
from rfjax.training.run import make_run
from rfjax.training.state import init_state

CONFIG = Path(__file__).parents[2] / "configs" / "formulations.py"


def clocked(call) -> tuple[float, object]:
    began = time.perf_counter()
    result = call()
    jax.block_until_ready(result)
    return time.perf_counter() - began, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of each, a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--compiled-alone", type=int, default=3, help="runs whose compilation alone is timed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    configs = [load(CONFIG, {"formulation": name}) for name in PAPER[: args.members]]
    run = make_run(configs[0])
    config, size = run.config, run.config.train.batch_size
    batch = batch_of_step(run.corpus, 0, batch_size=size)
    make_state = jax.jit(lambda key: init_state(run.backbone.init, make_optimizer(config), key))
    first = make_state(run_keys(config.seed)[0])

    mesh = cohort_mesh()
    states, whole = (
        stack([first] * args.members, mesh),
        jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())),
    )
    runs = [make_run(config, like=run) for config in configs]
    program = make_cohort_step(runs, mesh, state_shapes(run).params)
    compile_together, program = clocked(lambda: program.lower(states, whole, np.int32(0)).compile())

    put = put_batch(run.mesh, size, places_here(run.mesh, size), batch)
    compiled = [clocked(lambda one=one: lower_train_step(one).compile()) for one in runs[: args.compiled_alone]]
    compile_alone = statistics.median(seconds for seconds, _ in compiled)
    step, alone = compiled[0][1], jax.device_put(first, shardings(run.mesh, first))

    def together():
        nonlocal states
        for number in range(args.steps):
            states, metrics = program(states, whole, np.int32(number))
        return metrics

    def one():
        nonlocal alone
        for _ in range(args.steps):
            alone, metrics = step(alone, put)
        return metrics

    together(), one()
    rounds = [
        (clocked(together)[0] / args.steps / args.members, clocked(one)[0] / args.steps) for _ in range(args.rounds)
    ]
    per_member, per_run = (statistics.median(times) for times in zip(*rounds, strict=True))
    steps = config.train.steps
    total = [compile_together + steps * args.members * per_member, args.members * (compile_alone + steps * per_run)]
    flops = size * (run.flops_per_image + recompute_flops(config.model, run.corpus.shapes, config.train.remat))
    peak = matmul_flops_per_second(jax.devices(), config.train.compute_dtype)["flops_per_second"]
    record = {
        "date": date.today().isoformat(),
        "jax": jax.__version__,
        "hardware": hardware.describe(jax.devices()),
        "members": args.members,
        "batch_size": size,
        "steps_a_round": args.steps,
        "rounds": rounds,
        "seconds_a_step_and_member": {
            "together": per_member,
            "alone": per_run,
            "alone_over_together": per_run / per_member,
        },
        "compile_seconds": {"together": compile_together, "one_alone": compile_alone},
        f"seconds_of_{steps}_steps_of_all": {
            "together": total[0],
            "alone": total[1],
            "alone_over_together": total[1] / total[0],
        },
        "floor_seconds_a_step_and_member": flops / peak,
        "together_over_floor": per_member / (flops / peak),
    }
    print(json.dumps(record, indent=1))
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
