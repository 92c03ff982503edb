"""`rfjax launch`: says exactly what it will run, writes it down, and runs it."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Nothing heavy is imported for `--help`."""
    parser.description = (
        "Runs every point of a study as a task of its own (rfjax study --point=ID), and rfjax study --collect after "
        "them all. "
        "What will be run is printed; scripts and manifests are kept in --out. A task that is pre-empted is "
        "started again "
        "and goes on from its newest checkpoint."
    )
    parser.add_argument("--config", required=True, metavar="FILE.py|NAME", help="a study; its points are the tasks")
    parser.add_argument(
        "--on",
        required=True,
        metavar="TARGET",
        help="slurm: an array of jobs; tpu-vm: queued resources, by gcloud; gke: JobSets, by kubectl",
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
        help="the study's folder as the tasks see it, on storage they share (default on slurm: runs/<study>; on gke: "
        "/rfjax/<study>)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where scripts, manifests and logs go on this machine (default: launch, in the study's folder here)",
    )
    parser.add_argument(
        "--setup", metavar="COMMANDS", help="shell commands that each task runs first: modules, an environment, a mount"
    )
    parser.add_argument(
        "--grace", type=int, default=300, metavar="SECONDS", help="to save in when told to stop (default 300)"
    )
    slurm = parser.add_argument_group("with --on=slurm")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="0 for nodes without")
    slurm.add_argument(
        "--nodes", type=int, metavar="N", help="of each point (default: the fewest that its config.mesh takes)"
    )
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument(
        "--time", metavar="D-HH:MM:SS", help="limit of one start: a run that meets it saves and is queued again"
    )
    slurm.add_argument(
        "--sbatch",
        action="append",
        metavar="--FLAG=VALUE",
        help="any other option of sbatch, for the points; may be given several times",
    )
    cloud = parser.add_argument_group("with --on=tpu-vm or --on=gke")
    cloud.add_argument(
        "--accelerator",
        metavar="NAME",
        help="of each point: v4-128, v5p-256 (TensorCores), v5litepod-256, v6e-256 (chips), h100x64 (GPUs, gke only)",
    )
    cloud.add_argument("--spot", action="store_true", default=None, help="cheaper, and pre-empted at any time")
    tpu = parser.add_argument_group("with --on=tpu-vm")
    tpu.add_argument("--zone", metavar="ZONE", help="where the slices are")
    tpu.add_argument("--project", metavar="ID", help="default: gcloud's own")
    tpu.add_argument("--runtime-version", metavar="NAME", help="default: Google's for JAX on this kind of TPU")
    tpu.add_argument(
        "--gcloud",
        action="append",
        metavar="--FLAG=VALUE",
        help="any other option of gcloud compute tpus queued-resources create; may be given several times",
    )
    gke = parser.add_argument_group("with --on=gke")
    gke.add_argument("--image", metavar="IMAGE", help="a container with rfjax, and JAX for the accelerator")
    gke.add_argument(
        "--volume",
        metavar="VOLUME",
        help="shared storage, at /rfjax in every container: pvc:CLAIM (Filestore, say) or gs://BUCKET (by GCS FUSE)",
    )
    gke.add_argument("--namespace", metavar="NAME", help="default: kubectl's own")
    gke.add_argument(
        "--service-account",
        metavar="NAME",
        help="of the pods (default: one made for the study); GCS FUSE needs one that may use the bucket",
    )
    gke.add_argument(
        "--max-restarts", type=int, metavar="N", help="of a point after failures; pre-emptions do not count (default 5)"
    )


# The options that only some targets know; one given to another is refused, not passed over.
OPTIONS = {
    "slurm": ("gpus_per_node", "nodes", "partition", "account", "time", "sbatch"),
    "tpu-vm": ("accelerator", "spot", "zone", "project", "runtime_version", "gcloud"),
    "gke": ("accelerator", "spot", "image", "volume", "namespace", "service_account", "max_restarts"),
}
NEEDED = {
    "slurm": ("gpus_per_node",),
    "tpu-vm": ("accelerator", "zone", "workdir"),
    "gke": ("accelerator", "image", "volume"),
}


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Launches a study's points; returns 0 where everything has been handed over.

    Raises `ConfigError` for what cannot be run as given, before anything is written.
    """
    _check_options(args)
    from rfjax.files import write_whole
    from rfjax.launch import gke, slurm, tpu_vm
    from rfjax.launch.tasks import executable, make_launch
    from rfjax.study.study import load_study

    config = Path(args.config)
    study = load_study(config, overrides)
    target = {"slurm": slurm, "tpu-vm": tpu_vm, "gke": gke}[args.on]
    there = {"slurm": config, "tpu-vm": Path(config.name), "gke": Path(gke.CONFIGS) / config.name}[args.on]
    folder = target.workdir(args.workdir, study.name)
    launch = make_launch(study, there, overrides, folder, args.point or ())
    here = Path(folder) if args.on == "slurm" else Path("runs") / study.name  # clusters share their folders
    out = Path(args.out or here / "launch")
    plan = target.plan(launch, args, out, config)

    print(f"study {study.name} on {args.on}: {len(launch.points)} point(s)")
    for task in (*launch.points, launch.collect):
        print(f"  {task.name}: {shlex.join(task.command)}")
    print("\n".join(f"  {line}" for line in plan.summary))
    if args.dry_run:
        for path, content in plan.files.items():
            print(f"\n# {path}\n{content}", end="")
        print("\n" + "\n".join(plan.commands))
        return 0
    executable(target.EXECUTABLE)
    write_whole(plan.files)
    target.submit(plan, lambda line: print(line, flush=True))
    return 0


def _check_options(args) -> None:
    from rfjax.errors import ConfigError

    if args.on not in OPTIONS:
        near = difflib.get_close_matches(args.on, OPTIONS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--on is {args.on!r}; it must be one of {', '.join(OPTIONS)}{hint}")
    spell = lambda option: "--" + option.replace("_", "-")  # noqa: E731
    for option in sorted({option for options in OPTIONS.values() for option in options} - set(OPTIONS[args.on])):
        if getattr(args, option) is not None:
            homes = " or ".join(target for target, options in OPTIONS.items() if option in options)
            raise ConfigError(f"{spell(option)} is for --on={homes}, and this is --on={args.on}; leave it out")
    for option in NEEDED[args.on]:
        if getattr(args, option) is None:
            hint = "; 0 for nodes without" if option == "gpus_per_node" else ""
            raise ConfigError(f"{spell(option)} is needed with --on={args.on}{hint}")
    for option, least in (("grace", 1), ("gpus_per_node", 0), ("nodes", 1), ("max_restarts", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ConfigError(f"{spell(option)} is {value}; it must be at least {least}")
