"""`rfjax votes`: counts the votes of a study that `rfjax compare` made, and prints which runs people preferred."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping

from rfjax.inputs.paths import as_path

ANALYSIS, WIN_RATES, STRENGTHS = "votes.json", "win_rates.csv", "strengths.csv"  # written into the study's folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `rfjax votes`."""
    add = parser.add_argument
    add("folder", metavar="DIR", type=as_path("DIR"), help="the study's folder, with its key.json")
    files = "the raters' files (default: DIR/votes/*.csv)"
    add("files", metavar="FILE.csv", nargs="*", type=as_path("FILE.csv"), help=files)
    run = "folder of a run that was compared: a record for the results table is written into it; may be repeated"
    add("--run", metavar="RUN", action="append", default=[], type=as_path("--run"), help=run)
    group = parser.add_argument_group("before anybody votes")
    power = "print the chance that the study finds a difference; reads no votes"
    group.add_argument("--power", action="store_true", help=power)
    effects = "assumed standard deviation between {} of the difference of two runs, in log odds (default {})"
    group.add_argument("--rater-effect", type=float, metavar="SD", help=effects.format("raters", 0.3))
    group.add_argument("--prompt-effect", type=float, metavar="SD", help=effects.format("prompts", 0.8))
    group.add_argument(
        "--ties", type=float, metavar="SHARE", help="assumed share of ties between equal images (default 0.2)"
    )


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Prints the study's power (--power), or analyses its votes and prints and writes the result. Returns 0.

    Raises `ConfigError` for a damaged study, and for votes that cannot be counted (`reading.read_votes`).
    """
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.outputs import check_output, holds, is_json_with
    from rfjax.votes import lines
    from rfjax.votes.analysis import analyse
    from rfjax.votes.power import designs
    from rfjax.votes.reading import read_votes, vote_files
    from rfjax.votes.record import checkpoints_of, write_records
    from rfjax.votes.study import read_keyed_study

    began = time.monotonic()
    assumed = {name: getattr(args, name) for name in ("rater_effect", "prompt_effect", "ties")}
    assumed = {name: value for name, value in assumed.items() if value is not None}
    for name, value in assumed.items():
        low_or_high = value < 0 or (name == "ties" and value >= 1)
        if low_or_high:
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}; it must be at least 0, and ties below 1")
    study = read_keyed_study(args.folder)
    if args.power:
        if args.files or args.run:
            raise ConfigError("--power reads no votes and writes no record; leave out the files and --run")
        print("\n".join(lines.power_lines(designs(study, **assumed))))
        return 0
    if assumed:
        raise ConfigError(f"--{next(iter(assumed)).replace('_', '-')} is assumed for --power; give --power as well")
    files = vote_files(args.folder, args.files)
    outputs = {
        args.folder / ANALYSIS: is_json_with("study", "questions", "rule"),
        args.folder / WIN_RATES: holds(",".join(lines.COLUMNS)),
        args.folder / STRENGTHS: holds(",".join(lines.STRENGTH_COLUMNS)),
    }
    for path, made_here in outputs.items():
        check_output(path, "the result", reads=files, made_here=made_here)
    checkpoints = checkpoints_of(study, args.run)
    analysis = analyse(study, read_votes(study, files))
    contents = (
        json.dumps(analysis, indent=1, allow_nan=False) + "\n",
        lines.win_rate_table(analysis),
        lines.strength_table(analysis),
    )
    write_whole(dict(zip(outputs, contents, strict=True)))
    print("\n".join([*lines.summary_lines(analysis), "", f"results: {', '.join(map(str, outputs))}"]))
    for path in write_records(analysis, checkpoints, seconds=time.monotonic() - began):
        print(f"record: {path}")
    return 0
