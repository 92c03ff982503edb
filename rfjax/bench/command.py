"""`rfjax bench`: measures a config's step time, images a second and FLOP/s here, and compares them with the peak."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rfjax.inputs.paths import as_path, as_text
from rfjax.plan.sample_options import add_sample_options, check_sample_options, read_sample_options

MADE_BY = "rfjax bench --coordinates"  # stored in the pictures that the command draws, to recognise them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    config, profile = "a run, or a study's base", "also write JAX's profile of the timed steps; profiling slows them"
    parser.add_argument("--config", required=True, metavar="FILE.py|NAME", type=as_text("--config"), help=config)
    parser.add_argument("--point", metavar="ID", help="measure this point of a study")
    steps = "timed training steps; with --sample timed batches; with --coordinates training steps (default 20)"
    parser.add_argument("--steps", type=int, default=20, metavar="N", help=steps)
    add_sample_options(parser, "time sampling, not training")
    check = "train small copies of the network and say whether activations keep their sizes over widths and depths"
    parser.add_argument("--coordinates", action="store_true", help=check)
    widths, depths = "widths of the copies (with --coordinates)", "depths of the copies (with --coordinates)"
    parser.add_argument("--widths", metavar="W,W,...", type=as_text("--widths"), help=widths)
    parser.add_argument("--depths", metavar="D,D,...", type=as_text("--depths"), help=depths)
    seeds = "number of random initialisations of each copy (with --coordinates; default 3)"
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help=seeds)
    figure = "draw the sizes of activations here (with --coordinates)"
    parser.add_argument("--figure", metavar="FILE.png", type=as_path("--figure"), help=figure)
    parser.add_argument("--json", metavar="FILE.json", type=as_path("--json"), help="write every number here")
    parser.add_argument("--profile", metavar="DIR", type=as_path("--profile"), help=profile)


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Measures, prints the result and, with --json, writes it; returns 0."""
    from rfjax import config_files
    from rfjax.bench.report import flag_lines, lines
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.outputs import check_output, check_output_folder, holds, is_json_with
    from rfjax.study.study import load_study
    from rfjax.training.run import make_run

    if args.steps < 1:
        raise ConfigError(f"--steps is {args.steps}; it must be at least 1")
    if args.seeds < 1:
        raise ConfigError(f"--seeds is {args.seeds}; it must be at least 1")
    check_sample_options(args)
    _check_coordinates(args)
    if args.sample and args.profile is not None:
        raise ConfigError("--profile records training steps, and --sample measures none; leave one of the two out")
    point, source = args.point, args.config
    if args.json is not None:
        check_output(args.json, "--json", made_here=is_json_with("schema", "hardware", "config"))
    if args.figure is not None:
        check_output(args.figure, "--figure", made_here=holds(MADE_BY))
    if args.profile is not None:
        check_output_folder(args.profile, "--profile")
    alone = point is None
    config = config_files.load(source, overrides) if alone else load_study(source, overrides).point(point).config
    say = lambda text: print(text, flush=True)  # noqa: E731
    if args.coordinates:
        from rfjax.bench import coordinates

        sizes = {
            f"{axis}s": coordinates.parse_sizes(getattr(args, f"{axis}s"), f"--{axis}s") for axis in ("width", "depth")
        }
        _check_one_process()
        found = coordinates.measure_coordinates(config, **sizes, seeds=args.seeds, steps=args.steps, say=say)
        record = _describe(make_run(config)) | found
        print("\n".join(["", *coordinates.lines(record)]))
        if args.figure is not None:
            coordinates.draw(record, args.figure, made_by=MADE_BY)
    elif args.sample:
        from rfjax.bench.sampling import sample_lines

        record = measure_sampling(config, args, say)
        print("\n".join(["", *sample_lines(record)]))
    else:
        record = measure(config, args.steps, args.profile, say)
        print("\n".join(["", *lines(record)]))
    for line in flag_lines(record):
        print(line)
    if args.json is not None:
        write_whole({args.json: json.dumps(record, indent=1, allow_nan=False) + "\n"})
        print(f"bench: {args.json}")
    return 0


def _check_coordinates(args: argparse.Namespace) -> None:
    """Raises `ConfigError` if an option of the coordinate check is given without --coordinates, or an option of another
    measurement is given with --coordinates."""
    from rfjax.errors import ConfigError

    if not args.coordinates:
        for name in ("widths", "depths", "figure"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name} is read with --coordinates alone; add it, or leave --{name} out")
    elif args.sample or args.profile is not None:
        other = "--sample" if args.sample else "--profile"
        raise ConfigError(f"{other} and --coordinates are two different measurements; leave one of the two out")


def measure_sampling(config, args: argparse.Namespace, say) -> dict:
    """Measures a config's sampling on all of JAX's devices; returns the record that --json writes.

    Raises `ConfigError` for a type of weights or a size of latents that the network cannot take, for a batch that
    cannot be split over the devices, and in a job of several processes.
    """
    from rfjax.bench.sampling import measure_samples
    from rfjax.errors import ConfigError
    from rfjax.models.quantised import check_weights
    from rfjax.plan.sampling import shapes_at
    from rfjax.training.run import make_run

    size, weights = read_sample_options(args)
    for name in weights:
        check_weights(name, config.model)
    _check_one_process()
    run = make_run(config)
    if args.batch is not None and (args.batch < 1 or args.batch % run.batch_ways):
        raise ConfigError(
            f"--batch is {args.batch}; it must be a multiple of the {run.batch_ways} devices that share it"
        )
    shapes = shapes_at(run.corpus.shapes, size, config)
    with run.computing():
        peak = _measure_peak(run, say)
        found = measure_samples(run, shapes, args.batch, weights, args.steps, peak, say)
    return _describe(run) | {"peak": peak, **found}


def _check_one_process() -> None:
    import jax

    from rfjax.errors import ConfigError

    if jax.process_count() > 1:
        raise ConfigError(
            f"rfjax bench measures the devices of one process, and this job has {jax.process_count()}; start it in one "
            "process"
        )


def _measure_peak(run, say) -> dict:
    """Measures the peak FLOP/s of matrix products in the run's compute type, on all its devices together. Returns what
    `matmul_flops_per_second` returns."""
    from rfjax.bench.peak import matmul_flops_per_second

    devices, dtype = run.mesh.devices.flatten().tolist(), run.config.train.compute_dtype
    say(f"the peak of {dtype} products on {len(devices)} device(s)")
    return matmul_flops_per_second(devices, dtype)


def _describe(run) -> dict:
    """Returns the fields of a record that describe the run and the hardware, not the measurement."""
    import jax

    from rfjax.config import to_dict
    from rfjax.models.attention import choose, platform_of
    from rfjax.training import hardware
    from rfjax.training.xla_flags import flags_in_force

    config, devices = run.config, run.mesh.devices.flatten().tolist()
    kind, dtype = config.train.attention, config.train.compute_dtype
    return {
        "schema": 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": config.name,
        "hardware": hardware.describe(devices),
        "jax": jax.__version__,
        "xla_flags": flags_in_force(os.environ),
        "compilation_cache": jax.config.jax_compilation_cache_dir,
        "mesh": dict(run.mesh.shape),
        "params": run.parameter_count,
        "compute_dtype": dtype,
        "attention": choose(kind, platform_of(devices[0]), dtype=dtype, head_size=config.model.head_size),
        "config": to_dict(config),
    }


def measure(config, steps: int, trace: Path | None, say) -> dict:
    """Benchmarks a config's training step on all of JAX's devices; returns the record that --json writes.

    `steps` is the number of timed steps. `trace` is a folder for JAX's profile of these steps; None writes no profile.
    A corpus of several aspect buckets is measured on the largest bucket, with its batch size. `say` gets a line before
    each measurement.
    """
    from rfjax.bench import phases
    from rfjax.bench.report import summary
    from rfjax.data.batch import written_shape
    from rfjax.data.buckets import format_shape
    from rfjax.models.flops import recompute_flops
    from rfjax.training import hardware
    from rfjax.training.optimizer import optimizer_bytes, optimizer_flops
    from rfjax.training.run import make_run

    _check_one_process()
    whole = make_run(config)
    run = whole.on_part(whole.largest_part)
    train = run.config.train  # with the batch size of that bucket
    shapes, devices = run.corpus.shapes, run.mesh.devices.flatten().tolist()
    if (buckets := len(whole.corpus.parts)) > 1:
        say(f"the largest of {buckets} aspect buckets is measured, latents of {format_shape(shapes.latents)}")
    with run.computing():
        peak = _measure_peak(run, say)
        say("the loader alone")
        loader = phases.loader_seconds(run, steps)
        say(f"{steps} steps")
        loop = phases.run_loop(run, steps, trace)
        say("forward, backward and optimiser, each compiled alone")
        parts = phases.part_seconds(run, steps)
    found = summary(
        batch_size=train.batch_size,
        flops_per_image=run.flops_per_image,
        recomputed_per_image=recompute_flops(config.model, shapes, train.remat),
        devices=len(devices),
        peak=peak["flops_per_second"],
        datasheet_peak=hardware.peak_flops([device.device_kind for device in devices]),
        loop=loop._asdict(),
        loader=loader,
        parts=parts,
        optimizer={"adamw": "AdamW", "muon": "Muon with AdamW"}[train.optimizer],
        optimizer_flops=optimizer_flops(config, run.backbone),
    )
    settings = {
        "latent_size": list(written_shape(shapes.latents)[:-1]),
        "batch_size": train.batch_size,
        "matmul_precision": train.matmul_precision,
        "remat": train.remat,
        "unroll": train.unroll,
        "optimizer": train.optimizer,
        "optimizer_bytes": optimizer_bytes(config, run.backbone),
    }
    return _describe(run) | settings | {"peak": peak, **found}
