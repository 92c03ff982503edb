"""`rfjax export`: writes a checkpoint for PyTorch."""

from __future__ import annotations

from rfjax.cli.arguments import add_checkpoint
from rfjax.inputs.paths import as_path


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    layouts = (
        "diffusers: for SD3Transformer2DModel; sd3: one file; plain: rfjax's names and a module, for every MM-DiT; "
        "lora: the adapter of a tuned run, for load_lora_weights of diffusers"
    )
    parser.add_argument("--format", required=True, choices=("diffusers", "sd3", "plain", "lora"), help=layouts)
    out = "a folder, or for sd3 and lora a file .safetensors"
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

    if args.format == "lora":
        return _export_adapter(args)
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
        print(f"code that samples as `rfjax sample --sigmas diffusers` does:\n\n{how_to_call(args.run, path)}")
    return 0


def _export_adapter(args) -> int:
    from rfjax.errors import ConfigError
    from rfjax.interop.lora_files import export_adapter

    if args.pipeline or args.models is not None:
        raise ConfigError(
            "--format lora writes one file, to be loaded into an existing pipeline; leave --pipeline and --models out"
        )
    path = export_adapter(args.run, out=args.out, step=args.step, weights=args.weights, dtype=args.dtype)
    print(f"exported: {path}")
    return 0
