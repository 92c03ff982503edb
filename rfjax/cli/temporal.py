"""`rfjax temporal`: scores detections in the frames of clips by the rules of temporal GenEval. Any detector will do."""

from __future__ import annotations

from rfjax.cli.geneval import add_scoring, given
from rfjax.inputs.paths import as_path
from rfjax.limits import CHOICES

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
    parser.add_argument(
        "--world",
        choices=CHOICES["data.world"],
        help="also measure the velocity error, from the speeds of this world of the corpus motion",
    )
    truth = "detections in ground-truth clips of the same prompts, to measure the detector's own velocity error"
    parser.add_argument("--truth", metavar="FILE.jsonl", type=as_path("--truth"), help=truth)


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
        world=args.world,
        truth_path=args.truth,
        seed=args.seed,
    )
    print(summary_text(summary))
    print(f"results: {args.out}\nsummary: {summary_path(args.out)}")
    return 0
