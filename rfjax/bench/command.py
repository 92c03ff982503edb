"""`rfjax bench`: step time, images a second and FLOP/s of a config here, beside the measured peak."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Nothing heavy is imported for `--help`."""
    parser.add_argument("--config", required=True, metavar="FILE.py|NAME", help="a run, or a study's base")
    parser.add_argument("--point", metavar="ID", help="of a study")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps (default 20)")
    parser.add_argument("--json", metavar="FILE.json", help="write every number here")
    parser.add_argument("--profile", metavar="DIR", help="also write JAX's profile of the timed steps; it slows them")


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Measures, prints, and writes the JSON; returns 0."""
    from rfjax import config as configs
    from rfjax.bench.report import lines
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.study.study import load_study

    if args.steps < 1:
        raise ConfigError(f"--steps is {args.steps}; it must be at least 1")
    config = (
        load_study(args.config, overrides).point(args.point).config
        if args.point
        else configs.load(args.config, overrides)
    )
    say = lambda text: print(text, flush=True)  # noqa: E731
    record = measure(config, args.steps, Path(args.profile) if args.profile else None, say)
    print("\n".join(["", *lines(record)]))
    if args.json:
        write_whole({Path(args.json): json.dumps(record, indent=1, allow_nan=False) + "\n"})
        print(f"bench: {args.json}")
    return 0


def measure(config, steps: int, trace: Path | None, say) -> dict:
    """The record of a config's benchmark on all of JAX's devices; `say` is told what is being measured."""
    from datetime import datetime

    import jax

    from rfjax.bench import phases
    from rfjax.bench.peak import matmul_flops_per_second
    from rfjax.bench.report import summary
    from rfjax.config import to_dict
    from rfjax.data.buckets import described, largest
    from rfjax.data.corpus import load_corpus
    from rfjax.errors import ConfigError
    from rfjax.models.attention import choose, platform_of
    from rfjax.models.backbone import parameter_count, training_backbone
    from rfjax.models.flops import recompute_flops, training_flops
    from rfjax.training import hardware
    from rfjax.training.mesh import make_mesh

    if jax.process_count() > 1:
        raise ConfigError(f"rfjax bench measures one process's devices, and there are {jax.process_count()} processes")
    train, mesh = config.train, make_mesh(config.mesh)
    devices = mesh.devices.flatten().tolist()
    platform = platform_of(devices[0])
    attention = choose(train.attention, platform, dtype=train.compute_dtype, head_size=config.model.head_size)
    whole = load_corpus(config.data, config.seed)
    corpus = largest(whole)
    if len(whole.parts) > 1:
        say(
            f"the largest of {len(whole.parts)} aspect buckets is measured, latents of "
            f"{described(corpus.shapes.latents)}"
        )
    backbone = training_backbone(config, corpus.shapes, platform)
    with jax.set_mesh(mesh), jax.default_matmul_precision(train.matmul_precision):
        say(f"the peak of {train.compute_dtype} products on {len(devices)} device(s)")
        peak = matmul_flops_per_second(devices, train.compute_dtype)
        say("the loader alone")
        loader = phases.loader_seconds(config, corpus, steps)
        say(f"{steps} steps")
        loop = phases.run_loop(config, corpus, backbone, mesh, steps, trace)
        say("forward, backward and optimiser, each compiled alone")
        parts = phases.part_seconds(config, corpus, backbone, mesh, steps)
    found = summary(
        batch_size=train.batch_size,
        flops_per_image=training_flops(config.model, corpus.shapes),
        recomputed_per_image=recompute_flops(config.model, corpus.shapes, train.remat),
        devices=len(devices),
        peak=peak["flops_per_second"],
        datasheet_peak=hardware.peak_flops([device.device_kind for device in devices]),
        loop=loop._asdict(),
        loader=loader,
        parts=parts,
    )
    return {
        "schema": 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": config.name,
        "hardware": hardware.describe(devices),
        "jax": jax.__version__,
        "mesh": dict(mesh.shape),
        "params": parameter_count(backbone),
        "latent_size": list(corpus.shapes.latents[:2]),
        "batch_size": train.batch_size,
        "compute_dtype": train.compute_dtype,
        "matmul_precision": train.matmul_precision,
        "remat": train.remat,
        "attention": attention,
        "peak": peak,
        **found,
        "config": to_dict(config),
    }
