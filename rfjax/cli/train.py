"""`rfjax train`: trains and measures one run in its folder."""

from __future__ import annotations

from rfjax.cli.processes import say
from rfjax.inputs.paths import as_path, as_text


def add_arguments(parser) -> None:
    config, folder = "a file with get_config()", "the run's folder; the same command resumes it"
    parser.add_argument("--config", required=True, metavar="FILE.py|NAME", type=as_text("--config"), help=config)
    parser.add_argument("--workdir", required=True, metavar="DIR", type=as_path("--workdir"), help=folder)
    init = "start a new run from this checkpoint's weights"
    parser.add_argument("--init", metavar="RUN@STEP", type=as_text("--init"), help=init)
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def run(args, overrides) -> int:
    """Trains the run, or resumes it."""
    from rfjax import config as configs
    from rfjax.study.run import run_config
    from rfjax.study.study import Point, describe, size_of
    from rfjax.training.run_folder import check_run_folder

    check_run_folder(args.workdir)
    config = configs.load(args.config, overrides)
    say(describe(Point(str(args.workdir), config), size_of(config)))
    run_config(config, args.workdir, init_from=args.init, evaluate=not args.no_evaluation)
    say(f"trained: {args.workdir}")
    return 0
