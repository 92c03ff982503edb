"""`rfjax temporal`: scores detections in the frames of clips by the rules of temporal GenEval. Any detector will do."""

from __future__ import annotations

from rfjax.cli.geneval import add_scoring, given

# (field of TemporalOptions, type, help)
OPTIONS = (
    ("threshold", float, "score above which an object counts (default 0.3)"),
    ("position_threshold", float, "least offset of a relation, as a share of both objects' summed sizes (default 0.1)"),
)


def add_arguments(parser) -> None:
    texts = (
        "prompts, with what happens (docs/motion.md)",
        "one row per clip: what was found in each frame",
        "a row per clip with its clauses; the summary is put beside it",
    )
    add_scoring(parser, texts, OPTIONS, "clips")


def run(args, overrides) -> int:
    """Scores the files, and prints the summary."""
    from rfjax.evaluation.geneval.files import summary_path
    from rfjax.evaluation.temporal.files import score_files, summary_text
    from rfjax.evaluation.temporal.rules import TemporalOptions

    summary = score_files(
        args.metadata,
        args.detections,
        args.out,
        allow_missing=args.allow_missing,
        options=TemporalOptions(**given(args, OPTIONS)),
        seed=args.seed,
    )
    print(summary_text(summary))
    print(f"results: {args.out}\nsummary: {summary_path(args.out)}")
    return 0
