"""`rfjax export`: writes a checkpoint for PyTorch."""

from __future__ import annotations

from rfjax.cli.arguments import add_checkpoint
from rfjax.inputs.paths import as_path


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    layouts = "diffusers: for SD3Transformer2DModel; sd3: one file; plain: our names and a module, for every MM-DiT"
    parser.add_argument("--format", required=True, choices=("diffusers", "sd3", "plain"), help=layouts)
    out = "a folder, or for sd3 a file .safetensors"
    parser.add_argument("--out", required=True, metavar="PATH", type=as_path("--out"), help=out)
    pipeline = "a whole StableDiffusion3Pipeline; for a run on a prepared corpus, with --format diffusers"
    parser.add_argument("--pipeline", action="store_true", help=pipeline)
    models = "with --pipeline: the frozen models (default: those that the corpus was prepared with)"
    parser.add_argument("--models", metavar="DIR", type=as_path("--models"), help=models)
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="default: f32, as trained")
    size = "size at which files are split (default 10)"
    parser.add_argument("--max-shard-gb", type=float, default=10.0, metavar="GB", help=size)


def run(args, overrides) -> int:
    """Writes the checkpoint; for a pipeline, also prints the code that samples from it."""
    from rfjax.interop.exporting import export_run, how_to_call

    path = export_run(
        args.run,
        layout=args.format,
        out=args.out,
        step=args.step,
        weights=args.weights,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_gb * 1e9,
        whole_pipeline=args.pipeline,
        models=args.models,
    )
    print(f"exported: {path}")
    if args.pipeline:
        print(f"what samples as rfjax sample --sigmas diffusers does:\n\n{how_to_call(args.run, path)}")
    return 0
