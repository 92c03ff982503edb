"""`rfjax tune`: tunes a run, or a study's runs, on images that the run itself samples and a reward rates."""

from __future__ import annotations

from pathlib import Path

from rfjax.inputs.paths import as_path, as_text

OVERRIDES = (
    "any field of the tuning's config can be set: --config.steps=100 --config.lora.rank=16 --config.dpo.beta=500"
)


def add_arguments(parser) -> None:
    from rfjax.tune.config import CHOICES

    run = "the run to tune, from its newest checkpoint; RUN@STEP names another checkpoint"
    study = "or a study's folder: the longest run of each size is tuned"
    parser.add_argument("run", metavar="RUN", type=as_text("RUN"), help=f"{run}; {study}")
    folder = "the folder of the tuned run, or of a study's tuned runs; the same command resumes"
    parser.add_argument("--workdir", required=True, metavar="DIR", type=as_path("--workdir"), help=folder)
    parser.add_argument("--method", choices=CHOICES["method"], help="default: dpo, or the config's")
    votes = "for dpo: learn from the pairs of this study of `rfjax votes`, in place of the run's own images"
    parser.add_argument("--votes", metavar="DIR", type=as_path("--votes"), help=votes)
    config = "a file whose get_config() returns fields of the tuning's config, or the name of a shipped one: preference"
    parser.add_argument("--config", metavar="FILE", type=as_text("--config"), help=config)
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def run(args, overrides) -> int:
    """Tunes a run or a study's runs, or resumes; prints a table of each measure before and after tuning."""
    from rfjax.training.processes import distributed
    from rfjax.tune import config, held_out, study, study_record
    from rfjax.tune.run import tune_run

    if args.method is not None:
        overrides = {"method": args.method} | overrides
    if args.votes is not None:
        overrides = {"votes.folder": str(args.votes)} | overrides
    tune = config.load(args.config, overrides)
    evaluate = not args.no_evaluation
    if study.is_study(Path(args.run)):
        folders = study.tune_study(
            Path(args.run),
            args.workdir,
            tune.method,
            lambda run, folder: tune_run(str(run), folder, tune, evaluate=evaluate),
        )
        if distributed.is_first():
            changes = study.read_changes(folders)
            print(
                "\n".join([*study.table(changes), f"written: {study_record.write(args.workdir, changes)}"]), flush=True
            )
        return 0
    tune_run(args.run, args.workdir, tune, evaluate=evaluate)
    if distributed.is_first():
        print(
            "\n".join([*held_out.table(held_out.read(args.workdir), tune.steps), f"tuned: {args.workdir}"]), flush=True
        )
    return 0
