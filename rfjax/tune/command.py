"""`rfjax tune`: tunes a run on its own images, judged by a reward."""

from __future__ import annotations

from rfjax.inputs.paths import as_path, as_text

OVERRIDES = (
    "any field of the tuning's config can be set: --config.steps=100 --config.lora.rank=16 --config.dpo.beta=500"
)


def add_arguments(parser) -> None:
    from rfjax.tune.config import CHOICES

    run = "the run to tune, by its newest checkpoint; RUN@STEP takes another"
    parser.add_argument("run", metavar="RUN", type=as_text("RUN"), help=run)
    folder = "the tuned run's folder; the same command resumes it"
    parser.add_argument("--workdir", required=True, metavar="DIR", type=as_path("--workdir"), help=folder)
    parser.add_argument("--method", choices=CHOICES["method"], help="default: dpo, or the config's")
    config = "a file whose get_config() returns fields of the tuning's config"
    parser.add_argument("--config", metavar="FILE.py", type=as_text("--config"), help=config)
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def run(args, overrides) -> int:
    """Tunes the run, or resumes that; prints what was measured before and after."""
    from rfjax.training.processes import distributed
    from rfjax.tune import config, watch
    from rfjax.tune.run import tune_run

    if args.method is not None:
        overrides = {"method": args.method} | overrides
    tune = config.load(args.config, overrides)
    tune_run(args.run, args.workdir, tune, evaluate=not args.no_evaluation)
    if distributed.is_first():
        print("\n".join([*watch.table(watch.read(args.workdir), tune.steps), f"tuned: {args.workdir}"]), flush=True)
    return 0
