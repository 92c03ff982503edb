"""`rfjax train`: trains and measures one run in its folder."""

from __future__ import annotations

from rfjax.cli.processes import say
from rfjax.inputs.paths import as_path, as_text


def add_arguments(parser) -> None:
    config, folder = "a file with get_config()", "the run's folder; the same command resumes it"
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE.py|NAME", type=as_text("--config"), help=config)
    branch = "branch off RUN at STEP, with its config and whole state; --config.train.steps gives the whole length"
    which.add_argument("--branch", metavar="RUN@STEP", type=as_text("--branch"), help=branch)
    parser.add_argument("--workdir", required=True, metavar="DIR", type=as_path("--workdir"), help=folder)
    init = "start a new run from this checkpoint's weights"
    parser.add_argument("--init", metavar="RUN@STEP", type=as_text("--init"), help=init)
    skip = "with --branch: the run goes on as it was, but passes over its next N batches, after a loss that blew up"
    parser.add_argument("--skip-batches", type=int, default=0, metavar="N", help=skip)
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def run(args, overrides) -> int:
    """Trains the run, or resumes it."""
    import jax

    from rfjax import config as configs
    from rfjax import config_files
    from rfjax.errors import ConfigError
    from rfjax.models.attention import platform_of
    from rfjax.models.stack import loop_advice
    from rfjax.study.run import run_config
    from rfjax.study.size import describe, size_of
    from rfjax.training import branches
    from rfjax.training.optimizer import warmup_advice
    from rfjax.training.run_folder import check_run_folder

    check_run_folder(args.workdir)
    place, skipped = {}, args.skip_batches
    if skipped and (skipped < 0 or args.branch is None):
        raise ConfigError(f"--skip-batches is {skipped}; it must be a number above 0, and needs --branch=RUN@STEP")
    if args.branch is None:
        config = config_files.load(args.config, overrides)
    else:
        if args.init is not None:
            raise ConfigError(f"--init={args.init} and --branch={args.branch} both say where the run starts; give one")
        if "train.steps" not in overrides and not skipped:
            raise ConfigError(
                f"--branch={args.branch} needs the branch's whole length, trunk included; give --config.train.steps"
            )
        found = branches.read_departure(args.branch)
        start = found.config if skipped else branches.branch_of(found.config, found.config.train.steps)
        config = configs.apply_overrides(start, overrides)
        place = {"role": branches.role_of(found.role, skipped), "trunk": found.trunk._replace(skip_batches=skipped)}
    if config.train.branches:
        given = f"config.train.branches is {config.train.branches}, which is several runs"
        raise ConfigError(f"{given}: give the config to rfjax study, or set config.train.branches=()")
    say(describe(str(args.workdir), config, size_of(config)))
    for line in (loop_advice(config, platform_of(jax.devices()[0])), warmup_advice(config.train)):
        if line:
            say(line)
    run_config(config, args.workdir, init_from=args.init, **place, evaluate=not args.no_evaluation)
    say(f"trained: {args.workdir}")
    return 0
