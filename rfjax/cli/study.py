"""`rfjax study`: trains and evaluates every point of a study, then fits and reports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from rfjax.cli.processes import say
from rfjax.console import printable
from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path, as_text


def add_arguments(parser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    config = "a file with get_config() and points()"
    which.add_argument("--config", metavar="FILE.py|NAME", type=as_text("--config"), help=config)
    which.add_argument("--list", action="store_true", help="list the shipped studies, for --config=NAME")
    folder = "default: runs/<name of the study>"
    parser.add_argument("--workdir", metavar="DIR", type=as_path("--workdir"), help=folder)
    parser.add_argument("--point", metavar="ID", help="train and evaluate this point only")
    parser.add_argument("--collect", action="store_true", help="merge, fit and report the runs so far; train nothing")
    parser.add_argument("--dry-run", action="store_true", help="list the points with parameters, FLOPs and state bytes")


def run(args, overrides) -> int:
    """Runs the study or the chosen point; returns 1 if a point failed or a run could not be read, else 0."""
    if args.list:
        print("\n".join(_shipped_lines()))
        return 0
    from rfjax.study import study as studies
    from rfjax.study.dry_run import dry_run_lines
    from rfjax.training.processes import distributed

    study = studies.load_study(args.config, overrides)
    if args.point is not None:
        study.point(args.point)  # refuses an unknown point, also in a dry run
    if args.dry_run:
        print("\n".join(dry_run_lines(study)))
        return 0
    root = Path("runs") / study.name if args.workdir is None else args.workdir
    failed = []
    if args.point is not None:
        studies.run_point(study, study.point(args.point), root)
        collect = f"rfjax study --config={args.config} --workdir={root} --collect"
        folders = ", ".join(str(root / run.id) for run in study.point(args.point).runs)
        say(f"point {args.point} is trained and evaluated in {folders}; collect with: {collect}")
        return 0
    notes = studies.strangers(study, root) if args.collect else []
    if not args.collect:
        failed = [outcome for outcome in studies.run_study(study, root) if outcome.error]
    if not distributed.is_first():
        return 1 if failed else 0
    try:
        table = _collect(study, root)
    finally:  # failures are printed even if there is nothing to collect
        for outcome in failed:
            print(f"failed: {outcome.run.id}: {printable(outcome.error)}", file=sys.stderr)

    for note in (*notes, *table.notes):
        print(f"note: {printable(note)}", file=sys.stderr)
    return 1 if failed or table.unreadable else 0


def _shipped_lines() -> list[str]:
    """Returns a line for each shipped config: its name and its docstring's first line. Runs no config."""
    from rfjax.shipped import list_configs

    docs = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in list_configs().items()}
    return [f"{name:<16} {doc.partition(chr(10))[0]}" for name, doc in docs.items()]


def _collect(study, root):
    """Merges the study's runs into a results table and writes the report; returns the table."""
    from rfjax.report.write import summary_lines, write_report
    from rfjax.results.merge import collect
    from rfjax.results.run_files import run_folders

    known = {run.id for run in study.runs}
    there = run_folders(root) if root.is_dir() else []
    runs = [folder for folder in there if folder.name in known]
    if not runs:
        raise ConfigError(f"no point of {study.name} has been run in {root}; leave --collect out to run them")
    table = collect(runs, root / "results", passed_over=[folder for folder in there if folder.name not in known])
    numbers = write_report(root / "results", root / "report")
    _show_figures(study, root)
    print("\n".join(summary_lines(numbers)))
    print(f"\nresults: {root / 'results'}\nreport:  {root / 'report' / 'index.html'}")
    return table


def _show_figures(study, root):
    """Writes the report's figures for TensorBoard, if `train.trackers` of some point names TensorBoard."""
    from rfjax.trackers.event_files import FOLDER, write_figures

    if not any("tensorboard" in point.config.train.trackers for point in study.points):
        return
    figures = {path.stem: path.read_bytes() for path in sorted((root / "report" / "figures").glob("*.png"))}
    try:
        write_figures(root / "report" / FOLDER, figures)
    except OSError as error:
        say(f"tensorboard: the report's figures cannot be written: {error.strerror or error}")
