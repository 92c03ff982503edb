"""`rfjax import`: makes a run from a PyTorch checkpoint."""

from __future__ import annotations

from rfjax.console import printable
from rfjax.inputs.paths import as_path, as_text


def add_arguments(parser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", type=as_path("SOURCE"), help="a folder of safetensors, or one such file"
    )
    parser.add_argument("--out", required=True, metavar="RUN", type=as_path("--out"), help="the folder of the new run")
    config = "corpus, training and evaluation (default: as exported)"
    parser.add_argument("--config", metavar="FILE.py|NAME", type=as_text("--config"), help=config)


def run(args, overrides) -> int:
    """Makes the run's folder, and prints what was recognised in the checkpoint."""
    from rfjax import config_files
    from rfjax.interop.importing import import_checkpoint, lines

    base = None if args.config is None else config_files.load(args.config)
    imported = import_checkpoint(args.source, args.out, base=base, overrides=overrides)
    print("\n".join(map(printable, lines(imported, args.out))))
    return 0
