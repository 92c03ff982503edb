"""`rfjax report`: remakes the report of a study, from its runs or from its results alone."""

from __future__ import annotations

import sys

from rfjax.inputs.paths import as_path


def add_arguments(parser) -> None:
    parser.add_argument("runs", metavar="RUNS", type=as_path("RUNS"), help="a study's folder, or its results folder")
    tuned = "a folder of tuned runs of this study (rfjax tune RUNS --workdir DIR); default: those in RUNS"
    parser.add_argument("--tuned", metavar="DIR", type=as_path("--tuned"), help=tuned)
    parser.add_argument("--out", metavar="DIR", type=as_path("--out"), help="default: report, beside the results")


def run(args, overrides) -> int:
    """Writes the report; returns 1 if a run could not be read and is left out, else 0."""
    from rfjax.console import printable
    from rfjax.report.write import check_report_folder, summary_lines, write_report
    from rfjax.results.merge import up_to_date

    if args.out is not None:
        check_report_folder(args.out)
    table = up_to_date(args.runs, say=lambda line: print(printable(line), file=sys.stderr))
    out = table.folder.parent / "report" if args.out is None else args.out
    tuned, notes = read_tuned(args)
    numbers = write_report(table.folder, out, tuned=tuned)
    print("\n".join(summary_lines(numbers)))
    for note in (*table.notes, *notes):
        print(f"note: {printable(note)}", file=sys.stderr)
    return 1 if table.unreadable else 0


def read_tuned(args) -> tuple[dict, list[str]]:
    """Reads the tuned runs in the folder --tuned or, without the option, in the study's folder.

    Returns ({method of tuning: a list with a `Change` for each measure of each run}, notes). If a tuned run in the
    study's folder cannot be read, all are left out, and a note says so. In the folder --tuned this raises the error.
    Raises `ConfigError` if the folder --tuned has no finished tuned run.
    """
    from rfjax.errors import ConfigError, RfjaxError
    from rfjax.results.run_files import run_folders
    from rfjax.tune import study

    folder = args.runs if args.tuned is None else args.tuned
    if args.tuned is None and not (folder.is_dir() and run_folders(folder)):
        return {}, []  # a results folder alone
    try:
        found = study.tuned_runs(folder)
        if args.tuned is not None and not found:
            raise ConfigError(f"--tuned {folder} has no finished tuned run; finish rfjax tune, or leave --tuned out")
        return {method: study.read_changes(runs) for method, runs in found.items()}, []
    except RfjaxError as error:
        if args.tuned is not None:
            raise
        return {}, [f"what tuning changed is left out: {error}"]
