"""`rfjax geneval`: scores a file of detections, made by any detector, by GenEval's rules."""

from __future__ import annotations

from rfjax.inputs.paths import as_path

# (field of GenEvalOptions, type, help)
OPTIONS = (
    ("threshold", float, "score above which an object counts (default 0.3)"),
    ("counting_threshold", float, "the same for counting prompts (default 0.9)"),
    ("max_objects", int, "objects kept per class (default 16)"),
    ("max_overlap", float, "IoU from which the weaker of two objects is dropped (default 1: none is)"),
    ("position_threshold", float, "share of the summed sizes that an offset must exceed (default 0.1)"),
)


def add_arguments(parser) -> None:
    files = (
        ("--metadata", "FILE.jsonl", "prompts, in GenEval's official schema"),
        ("--detections", "FILE.jsonl", "one row of detections per image"),
        ("--out", "results.jsonl", "results; the summary is put beside it"),
    )
    for name, metavar, text in files:
        parser.add_argument(name, required=True, metavar=metavar, type=as_path(name), help=text)
    parser.add_argument("--allow-missing", action="store_true", help="score what is there, and report missing images")
    parser.add_argument("--images-per-prompt", type=int, metavar="N", help="default: the largest sample + 1")
    for name, kind, text in OPTIONS:
        parser.add_argument("--" + name.replace("_", "-"), type=kind, metavar="X" if kind is float else "N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")


def run(args, overrides) -> int:
    """Scores the files, and prints the summary."""
    from rfjax.evaluation.geneval.files import score_files, summary_path, summary_text
    from rfjax.evaluation.geneval.rules import GenEvalOptions

    given = {name: getattr(args, name) for name, _, _ in OPTIONS if getattr(args, name) is not None}
    summary = score_files(
        args.metadata,
        args.detections,
        args.out,
        allow_missing=args.allow_missing,
        options=GenEvalOptions(**given),
        images_per_prompt=args.images_per_prompt,
        seed=args.seed,
    )
    print(summary_text(summary))
    print(f"results: {args.out}\nsummary: {summary_path(args.out)}")
    return 0
