"""`rfjax launch`: says exactly what it will run, writes it down, and runs it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

from rfjax.launch import options
from rfjax.launch.gke import Gke
from rfjax.launch.slurm import Slurm
from rfjax.launch.tpu_vm import TpuVm

TARGETS: dict[str, type] = {"slurm": Slurm, "tpu-vm": TpuVm, "gke": Gke}  # each a `target.Target`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Nothing heavy is imported for `--help`."""
    parser.description = (
        "Runs every point of a study as a task of its own (rfjax study --point=ID), and rfjax study --collect after "
        "them all. What will be run is printed; scripts and manifests are kept in --out. A task that is pre-empted is "
        "started again and goes on from its newest checkpoint."
    )
    parser.add_argument(
        "--config", required=True, metavar="CONFIG", help="a study, by file or shipped name; its points are the tasks"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print everything that would be written and run; do neither"
    )
    parser.add_argument(
        "--point", action="append", metavar="ID", help="launch this point only; may be given several times"
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the study's folder as the tasks see it, on storage that they share (default: <storage>/<study>; without "
        "--storage on slurm runs/<study>, on gke /rfjax/<study>)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where scripts, manifests and logs go on this machine (default: launch, in the study's folder here)",
    )
    options.add_arguments(parser, TARGETS)


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Launches a study's points; returns 0 where everything has been handed over.

    Raises `ConfigError` for what cannot be run as given, before anything is written.
    """
    on, common, target = options.read_options(args, TARGETS)
    from rfjax.files import write_whole
    from rfjax.launch.tasks import executable, make_launch
    from rfjax.shipped import find_config
    from rfjax.study.study import load_study

    study = load_study(args.config, overrides)
    given = args.workdir or (f"{common.storage.rstrip('/')}/{study.name}" if common.storage else None)
    workdir = target.workdir(given, study.name)
    here = Path(workdir) if target.shares_folders else Path("runs") / study.name
    launch = make_launch(
        study,
        overrides,
        config=find_config(args.config),
        config_there=target.config_path(find_config(args.config)),
        workdir=workdir,
        out=Path(args.out or here / "launch"),
        options=common,
        points=args.point or (),
    )
    plan = target.plan(launch)

    print(f"study {study.name} on {on}: {len(launch.points)} point(s)")
    for task in (*launch.points, launch.collect):
        print(f"  {task.name}: {shlex.join(task.command)}")
    print("\n".join(f"  {line}" for line in plan.summary))
    if args.dry_run:
        for path, content in plan.files.items():
            print(f"\n# {path}\n{content}", end="")
        print("\n" + "\n".join(plan.commands))
        return 0
    executable(target.executable)
    write_whole(plan.files)
    target.submit(plan, lambda line: print(line, flush=True))
    return 0
