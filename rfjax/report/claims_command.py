"""`rfjax claims`: claims of published scaling laws, each tested on a table of runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from rfjax.inputs.paths import as_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments. Nothing heavy is imported for `--help`."""
    add = parser.add_argument
    many = {"action": "append", "default": []}
    table = "a CSV or Parquet file with a row for each run or checkpoint, or a results or study folder"
    add("table", metavar="TABLE", type=as_path("TABLE"), help=table)
    rename = 'the name by which rfjax knows a column of the table, as "params=Model Size"; may be repeated'
    add("--rename", metavar="OURS=THEIRS", help=rename, **many)
    add("--flops-per-param-image", type=float, metavar="K", help="images (or flops) from flops = K * params * images")
    tokens = "image tokens per image, for a table without image_tokens (1 if the column images counts tokens)"
    add("--tokens-per-image", type=float, metavar="K", help=tokens)
    add("--resamples", type=int, default=1000, metavar="N", help="resamples of the bootstrap (default 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    add("--out", metavar="FILE.json", type=as_path("--out"), help="write every verdict and law here")


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Runs `rfjax claims`: prints the verdicts, the laws and the conventions, and writes them to `--out`.

    Raises `ConfigError` for a table that is damaged or has a bad value, and for options that are out of range or
    contradict each other.
    """
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.laws import claims
    from rfjax.outputs import check_output, is_json_with
    from rfjax.report.claims_facts import LAW_HEADER, at_words, facts, law_rows
    from rfjax.report.fit_facts import as_lines
    from rfjax.report.formats import columns
    from rfjax.results.plain import plain

    if args.resamples < 100:
        raise ConfigError(f"--resamples is {args.resamples}; 95 % intervals need at least 100")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")
    given = (("--flops-per-param-image", args.flops_per_param_image), ("--tokens-per-image", args.tokens_per_image))
    for option, value in given:
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} is {value:g}; it must be positive and finite")
    if args.out is not None:
        check_output(args.out, "--out", reads=[args.table], made_here=is_json_with("verdicts", "conventions"))
    evidence, source = _evidence(args)
    board = claims.board(evidence)
    left = [[line] for line in source.left_out_lines()]
    print("\n".join(as_lines(facts(board) + left)))
    print("\npublished laws beside this table's")
    print("\n".join(columns([LAW_HEADER, *law_rows(board)])))
    print("\n".join(at_words(board)))
    if args.out is not None:
        content = plain(board | {"source": source.description})
        write_whole({args.out: json.dumps(content, indent=1, allow_nan=False) + "\n"})
        print(f"claims: {args.out}")
    return 0


def _evidence(args):
    """Returns (the `Evidence` on which claims are tested, the `FitSource` from which it was made)."""
    from rfjax.laws import claim_evidence, study_fits
    from rfjax.laws.fit_source import read_renames, read_source
    from rfjax.laws.fitting import FitOptions

    options = FitOptions(resamples=args.resamples, seed=args.seed)
    source = read_source(
        args.table,
        rename=read_renames(args.rename),
        flops_per_param_image=args.flops_per_param_image,
        curves=True,
        largest_losses=0,
        max_loss=None,
    )
    if source.study is None:
        return claim_evidence.of_table(source.curves, options, args.tokens_per_image), source
    results, settings = source.study
    analysis = study_fits.analyse(source.final, options, pairs=source.pairs)
    found = claim_evidence.of_study(analysis, source.curves, results, settings, options, args.tokens_per_image)
    return found, source
