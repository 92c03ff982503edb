"""`rfjax report`: remakes the report of a study, from its runs or from its results alone."""

from __future__ import annotations

import sys

from rfjax.inputs.paths import as_path


def add_arguments(parser) -> None:
    parser.add_argument("runs", metavar="RUNS", type=as_path("RUNS"), help="a study's folder, or its results folder")
    parser.add_argument("--out", metavar="DIR", type=as_path("--out"), help="default: report, beside the results")


def run(args, overrides) -> int:
    """Writes the report; returns 1 if a run could not be read and is left out, else 0."""
    from rfjax.console import printable
    from rfjax.report.write import check_report_folder, summary_lines, write_report
    from rfjax.results.merge import up_to_date

    if args.out is not None:
        check_report_folder(args.out)
    table = up_to_date(args.runs, say=lambda line: print(printable(line), file=sys.stderr))
    numbers = write_report(table.folder, table.folder.parent / "report" if args.out is None else args.out)
    print("\n".join(summary_lines(numbers)))
    for note in table.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    return 1 if table.unreadable else 0
