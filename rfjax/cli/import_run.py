"""`rfjax import`: makes a run of a PyTorch checkpoint."""

from __future__ import annotations

from pathlib import Path


def add_arguments(parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder of safetensors, or one such file")
    parser.add_argument("--out", required=True, metavar="RUN", help="the folder of the new run")
    config = "corpus, training and evaluation (default: as exported)"
    parser.add_argument("--config", metavar="FILE.py|NAME", help=config)


def run(args, overrides) -> int:
    """Makes the run's folder, and prints what was recognised in the checkpoint."""
    from rfjax import config as configs
    from rfjax.interop.importing import import_checkpoint, lines

    base = configs.load(args.config) if args.config else None
    imported = import_checkpoint(Path(args.source), Path(args.out), base=base, overrides=overrides)
    print("\n".join(lines(imported, Path(args.out))))
    return 0
