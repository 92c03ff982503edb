"""`rfjax export`: a checkpoint written for PyTorch."""

from __future__ import annotations

from pathlib import Path

from rfjax.cli.arguments import add_checkpoint


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("diffusers", "sd3", "plain"),
        help="diffusers: a folder for SD3Transformer2DModel; sd3: the single file of SD3 and SD3.5; "
        "plain: our names, and a PyTorch module that reads them, for every MM-DiT",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="a folder, or for sd3 a file .safetensors")
    parser.add_argument(
        "--pipeline",
        action="store_true",
        help="of a run on a prepared corpus, with --format diffusers: a whole StableDiffusion3Pipeline, autoencoder, "
        "text encoders and tokenizers included",
    )
    parser.add_argument(
        "--models",
        default="",
        metavar="DIR",
        help="with --pipeline: the frozen models (default: where the corpus was prepared with them)",
    )
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="default: f32, as trained")
    parser.add_argument(
        "--max-shard-gb", type=float, default=10.0, metavar="GB", help="split files at this size (default 10)"
    )


def run(args, overrides) -> int:
    """Writes the checkpoint, and says how a pipeline of it is called."""
    from rfjax.interop.exporting import export_run, how_to_call

    path = export_run(
        Path(args.run),
        layout=args.format,
        out=Path(args.out),
        step=args.step,
        weights=args.weights,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_gb * 1e9,
        whole_pipeline=args.pipeline,
        models=args.models,
    )
    print(f"exported: {path}")
    if args.pipeline:
        print(f"what samples as rfjax sample --sigmas diffusers does:\n\n{how_to_call(Path(args.run), path)}")
    return 0
