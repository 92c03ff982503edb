"""`rfjax geneval`: scores a file of detections, made by any detector, by GenEval's rules."""

from __future__ import annotations

from rfjax.inputs.paths import as_path

# (field of GenEvalOptions, type, help)
OPTIONS = (
    ("threshold", float, "score above which an object counts (default 0.3)"),
    ("counting_threshold", float, "the same for counting prompts (default 0.9)"),
    ("max_objects", int, "objects kept per class (default 16)"),
    ("max_overlap", float, "IoU from which the weaker of two objects is dropped (default 1: none is)"),
    ("position_threshold", float, "least offset of a relation, as a share of both objects' summed sizes (default 0.1)"),
)


def add_arguments(parser) -> None:
    texts = (
        "prompts, in GenEval's official schema",
        "one row of detections per image",
        "results; the summary is put beside it",
    )
    add_scoring(parser, texts, OPTIONS, "images")
    parser.add_argument("--images-per-prompt", type=int, metavar="N", help="default: the largest sample number + 1")


def add_scoring(parser, texts, options, things) -> None:
    """Adds to `parser` the arguments of a verb that scores files of detections.

    `things` is what the help calls the detector's inputs: images or clips. `texts` are the help texts of --metadata,
    --detections and --out. `options` are further options, each (name, type, help).
    """
    files = zip(("metadata", "detections", "out"), ("FILE.jsonl", "FILE.jsonl", "results.jsonl"), texts, strict=True)
    for name, metavar, text in files:
        parser.add_argument(f"--{name}", required=True, metavar=metavar, type=as_path(f"--{name}"), help=text)
    parser.add_argument(
        "--allow-missing", action="store_true", help=f"score what is there, and report missing {things}"
    )
    for name, kind, text in options:
        parser.add_argument("--" + name.replace("_", "-"), type=kind, metavar="X" if kind is float else "N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")


def given(args, options) -> dict[str, object]:
    """Returns {name: value} of those `options` that were given."""
    return {name: getattr(args, name) for name, _, _ in options if getattr(args, name) is not None}


def run(args, overrides) -> int:
    """Scores the files, and prints the summary."""
    from rfjax.evaluation.geneval.files import score_files, summary_path, summary_text
    from rfjax.evaluation.geneval.rules import GenEvalOptions

    summary = score_files(
        args.metadata,
        args.detections,
        args.out,
        allow_missing=args.allow_missing,
        options=GenEvalOptions(**given(args, OPTIONS)),
        images_per_prompt=args.images_per_prompt,
        seed=args.seed,
    )
    print(summary_text(summary))
    print(f"results: {args.out}\nsummary: {summary_path(args.out)}")
    return 0
