"""`rfjax fit`: checks its arguments, and prints and writes the answer that `rfjax.report.fit_answers` computes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from rfjax.inputs.paths import as_path

LAW_NAMES = ("power", "saturating", "parametric", "broken", "approach1", "approach2")
LOSS_NAMES = ("huber", "squares-log", "squares-raw", "l1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments. Nothing heavy is imported for `--help`."""
    add = parser.add_argument
    many = {"action": "append", "default": []}  # for options that may be repeated
    table = "a CSV or Parquet file of runs (run, loss, and flops or params and images), or a results or study folder"
    add("table", metavar="TABLE", type=as_path("TABLE"), help=table)
    add("--law", choices=LAW_NAMES, help="default: all that the columns allow")
    budget = "divide this budget (parametric, approach1, approach2), or predict its loss; may be repeated"
    add("--budget", type=float, metavar="FLOPS", help=budget, **many)
    fixed = "images of each size if all sizes train on equally many, to compare with (default: the most of any run)"
    add("--fixed-images", type=float, metavar="N", help=fixed)
    loss = "the misfit to minimise (default: huber, of log residuals; for branches, generalised least squares)"
    add("--loss", choices=LOSS_NAMES, help=loss)
    add("--delta", type=float, metavar="D", help="delta of Huber's loss (default 0.001)")
    metric = "a score to correlate with the loss and to predict from it; may be repeated"
    add("--metric", metavar="COLUMN", help=metric, **many)
    rename = 'the name by which rfjax knows a column of the table, as "params=Model Size"; may be repeated'
    add("--rename", metavar="OURS=THEIRS", help=rename, **many)
    add("--flops-per-param-image", type=float, metavar="K", help="images (or flops) from flops = K * params * images")
    largest = "leave out rows whose loss is at least the K-th largest"
    add("--drop-largest-losses", type=int, default=0, metavar="K", help=largest)
    add("--max-loss", type=float, metavar="L", help="leave out rows with a larger loss")
    add(
        "--profile",
        action="store_true",
        help="add profile likelihoods of E and the exponents (not for branches)",
    )
    ways = "bootstrap over runs, or parametric (default: over runs if they are 8 or more, and 5 more than parameters)"
    add("--intervals", choices=("auto", "runs", "parametric"), default="auto", help=ways)
    add("--resamples", type=int, default=1000, metavar="N", help="resamples of the bootstrap (default 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    add("--out", metavar="FILE.json", type=as_path("--out"), help="write every number of the fits here")


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Runs `rfjax fit`: prints what the fits found, and writes it to `--out`.

    Raises `ConfigError` for a table that is damaged, lacks a column or has a bad value, if the user asked for a law
    that the runs cannot decide, and for options that are out of range or contradict each other.
    """
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.outputs import check_output, is_json_with
    from rfjax.report.fit_answers import answer

    if args.resamples < 100:
        raise ConfigError(f"--resamples is {args.resamples}; 95 % intervals need at least 100")
    sizes = [("--budget", budget) for budget in args.budget] + [("--fixed-images", args.fixed_images)]
    sizes += [("--max-loss", args.max_loss), ("--flops-per-param-image", args.flops_per_param_image)]
    for option, value in (*sizes, ("--delta", args.delta)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} is {value:g}; it must be positive and finite")
    if args.drop_largest_losses < 0:
        raise ConfigError(f"--drop-largest-losses is {args.drop_largest_losses}; it must be at least 0")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")
    if args.out is not None:
        check_output(args.out, "--out", reads=[args.table], made_here=is_json_with("source", "budgets"))
    lines, content = answer(args)
    print("\n".join(lines))
    if args.out is not None:
        write_whole({args.out: json.dumps(content, indent=1, allow_nan=False) + "\n"})
        print(f"fits: {args.out}")
    return 0
