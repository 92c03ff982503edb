"""`rfjax launch`: prints what it will run, writes the scripts or manifests, and hands them to the scheduler."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

from rfjax.files import write_whole
from rfjax.inputs.paths import as_mounted, as_path, as_text
from rfjax.launch import options
from rfjax.launch.gke import Gke
from rfjax.launch.slurm import Slurm
from rfjax.launch.tpu_vm import TpuVm
from rfjax.outputs import check_output, holds
from rfjax.shipped import find_config

TARGETS: dict[str, type] = {"slurm": Slurm, "tpu-vm": TpuVm, "gke": Gke}  # each a `target.Target`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.description = (
        "Runs every point of a study as a task of its own (rfjax study --point=ID), and rfjax study --collect after "
        "them all. Prints what will be run, and keeps scripts and manifests in --out. A task that is pre-empted starts "
        "again and goes on from its newest checkpoint."
    )
    add = parser.add_argument
    config = "a study, by file or shipped name; each of its points becomes a task"
    add("--config", required=True, metavar="FILE.py|NAME", type=as_text("--config"), help=config)
    add("--dry-run", action="store_true", help="print everything that would be written and run; do neither")
    add("--point", action="append", metavar="ID", help="launch this point only; may be repeated")
    workdir = "(default: <storage>/<study>; without --storage runs/<study> on slurm, /rfjax/<study> on gke)"
    workdir = f"the study's folder, on storage that the tasks share {workdir}"
    add("--workdir", metavar="DIR", type=as_mounted("--workdir"), help=workdir)
    out = "folder here for scripts (default: <workdir>/launch on slurm, else runs/<study>/launch)"
    add("--out", metavar="DIR", type=as_path("--out"), help=out)
    options.add_arguments(parser, TARGETS)


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Launches a study's points; returns 0 once the scheduler has accepted all tasks. On TPU VMs it does not return,
    since the written script takes over the process. With --dry-run it prints everything, launches nothing, returns 0.

    Raises `ConfigError` before it writes a file if the study cannot run as given.
    """
    on, common, target = options.read_options(args, TARGETS)
    from rfjax.launch.tasks import check_executable, make_launch
    from rfjax.study.study import load_study

    config = find_config(args.config)
    study = load_study(config, overrides)
    in_storage = None if common.storage is None else f"{common.storage.rstrip('/')}/{study.name}"
    given = in_storage if args.workdir is None else args.workdir
    workdir = target.workdir(given, study.name)
    here = Path(workdir) if target.shares_folders else Path("runs") / study.name
    launch = make_launch(
        study,
        overrides,
        config=config,
        config_there=target.config_path(config),
        workdir=workdir,
        out=here / "launch" if args.out is None else args.out,
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
    for path in plan.files:
        check_output(path, "--out", made_here=holds("Made by `rfjax launch`", "app.kubernetes.io/name: rfjax"))
    check_executable(target.executable)
    write_whole(plan.files)
    target.submit(plan, lambda line: print(line, flush=True))
    return 0
