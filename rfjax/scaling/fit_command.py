"""`rfjax fit`: the laws of a results table on the console, and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Nothing heavy is imported for `--help`."""
    parser.add_argument("table", metavar="TABLE", help="a results folder, or a study's folder that holds one")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--out", metavar="FILE.json", help="write every number of the fits here")


def run(args: argparse.Namespace) -> int:
    """Fit the laws of compute and of parameters and images; predict the largest depth; say so.

    Raises `ConfigError` for a table that is damaged or has no validation loss.
    """
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.scaling import frontier, results
    from rfjax.scaling.report.formats import analysis_lines, fit_lines

    if args.resamples < 100:
        raise ConfigError(f"--resamples is {args.resamples}; 95 % intervals need at least 100")
    table = results.read(results.find(args.table))
    settings = frontier.primary_settings(table)
    points = frontier.final_points(frontier.checkpoints(table, settings))
    analysis = frontier.analyse(points, resamples=args.resamples, seed=args.seed).to_json()
    others = [fit for name, fit in analysis["fits"].items() if name != analysis["headline"]]
    print("\n".join([*analysis_lines(analysis), *(line for fit in others for line in fit_lines(fit))]))
    if args.out:
        content = {"settings": vars(settings), **analysis}
        write_whole({Path(args.out): json.dumps(content, indent=1, allow_nan=False) + "\n"})
        print(f"fits: {args.out}")
    return 0
