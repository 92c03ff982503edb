"""`rfjax train`: trains and measures one run in its folder."""

from __future__ import annotations

from pathlib import Path

from rfjax.cli.processes import say


def add_arguments(parser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.py|NAME", help="a file with get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder; the same command resumes it")
    parser.add_argument("--init", metavar="RUN@STEP", help="start a new run from this checkpoint's weights")
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def run(args, overrides) -> int:
    """Trains the run, or resumes it."""
    from rfjax import config as configs
    from rfjax.study.run import run_config
    from rfjax.study.study import Point, describe, size_of

    config = configs.load(args.config, overrides)
    say(describe(Point(args.workdir, config), size_of(config)))
    run_config(config, Path(args.workdir), init_from=args.init, evaluate=not args.no_evaluation)
    say(f"trained: {args.workdir}")
    return 0
