"""`rfjax temporal`: scores what a detector found in the frames of clips, whoever made them, by temporal GenEval."""

from __future__ import annotations

from rfjax.inputs.paths import as_path

# (field of TemporalOptions, help)
OPTIONS = (
    ("threshold", "score above which an object counts (default 0.3)"),
    ("position_threshold", "share of the summed sizes that an offset must exceed (default 0.1)"),
)


def add_arguments(parser) -> None:
    files = (
        ("--metadata", "FILE.jsonl", "prompts, with what happens (docs/motion.md)"),
        ("--detections", "FILE.jsonl", "one row per clip: what was found in each frame"),
        ("--out", "results.jsonl", "a row per clip with its clauses; the summary is put beside it"),
    )
    for name, metavar, text in files:
        parser.add_argument(name, required=True, metavar=metavar, type=as_path(name), help=text)
    parser.add_argument("--allow-missing", action="store_true", help="score what is there, and report missing clips")
    for name, text in OPTIONS:
        parser.add_argument("--" + name.replace("_", "-"), type=float, metavar="X", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")


def run(args, overrides) -> int:
    """Scores the files, and prints the summary."""
    from rfjax.evaluation.geneval.files import summary_path
    from rfjax.evaluation.temporal.files import score_files, summary_text
    from rfjax.evaluation.temporal.rules import TemporalOptions

    given = {name: getattr(args, name) for name, _ in OPTIONS if getattr(args, name) is not None}
    summary = score_files(
        args.metadata,
        args.detections,
        args.out,
        allow_missing=args.allow_missing,
        options=TemporalOptions(**given),
        seed=args.seed,
    )
    print(summary_text(summary))
    print(f"results: {args.out}\nsummary: {summary_path(args.out)}")
    return 0
