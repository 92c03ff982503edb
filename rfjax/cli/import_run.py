"""`rfjax import`: makes a run from a PyTorch checkpoint, or a tuned run from a file of LoRA factors."""

from __future__ import annotations

from rfjax.console import printable
from rfjax.inputs.paths import as_path, as_text


def add_arguments(parser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", type=as_path("SOURCE"), help="a folder of safetensors, or one such file"
    )
    parser.add_argument("--out", required=True, metavar="RUN", type=as_path("--out"), help="the folder of the new run")
    config = "config of corpus, training and evaluation (default: the exported run's, if rfjax exported SOURCE)"
    base = "SOURCE is a LoRA's file that adapts this run: makes a tuned run (default: its newest checkpoint)"
    parser.add_argument("--base", metavar="RUN[@STEP]", type=as_text("--base"), help=base)
    weights = "with --base: which of the base run's weights the LoRA adapts (default: ema)"
    parser.add_argument("--weights", choices=("ema", "raw"), help=weights)
    parser.add_argument("--config", metavar="FILE.py|NAME", type=as_text("--config"), help=config)


def run(args, overrides) -> int:
    """Makes the run's folder, and prints what was recognised in the checkpoint."""
    from rfjax import config_files
    from rfjax.errors import ConfigError
    from rfjax.interop.importing import import_checkpoint, lines

    if args.base is not None:
        return _import_adapter(args, overrides)
    if args.weights is not None:
        raise ConfigError(f"--weights is {args.weights}, and without --base no run is adapted; leave it out")
    base = None if args.config is None else config_files.load(args.config)
    imported = import_checkpoint(args.source, args.out, base=base, overrides=overrides)
    print("\n".join(map(printable, lines(imported, args.out))))
    return 0


def _import_adapter(args, overrides) -> int:
    from rfjax.errors import ConfigError
    from rfjax.interop.lora_import import import_adapter

    if args.config is not None or overrides:
        raise ConfigError(
            "with --base the config is that of the run that is adapted; leave --config and --config.* out"
        )
    imported = import_adapter(args.source, args.base, args.out, weights=args.weights or "ema")
    print("\n".join(map(printable, imported.lines(args.out))))
    return 0
