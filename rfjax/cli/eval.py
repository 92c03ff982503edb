"""`rfjax eval`: a checkpoint measured as its config asks, or by one evaluation of another kind."""

from __future__ import annotations

from pathlib import Path

from rfjax.cli.arguments import add_checkpoint
from rfjax.cli.processes import say
from rfjax.errors import ConfigError


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--sampling-steps",
        metavar="N,N,...",
        help="instead: GenEval, path length and distance at these counts of sampling steps, the most being the "
        "reference",
    )
    parser.add_argument(
        "--mlperf-levels",
        metavar="FILE",
        help="instead: MLPerf's validation loss, each validation example at the one level that this file gives it, "
        "an integer from 0 to 7 a line",
    )


def run(args, overrides) -> int:
    """Measures what is asked for, and prints the records."""
    from rfjax.evaluation.evaluate import evaluate_run
    from rfjax.evaluation.records import record_lines

    if args.sampling_steps and args.mlperf_levels:
        raise ConfigError("--sampling-steps and --mlperf-levels are two evaluations; give one at a time")
    folder, checkpoint = Path(args.run), {"step": args.step, "weights": args.weights}
    if args.mlperf_levels:
        from rfjax.evaluation.mlperf_loss import measure_assigned

        records = measure_assigned(folder, overrides, Path(args.mlperf_levels), **checkpoint)
    elif args.sampling_steps:
        from rfjax.evaluation.step_sweep import measure_sampling_steps, parse_steps

        records = measure_sampling_steps(folder, overrides, parse_steps(args.sampling_steps), **checkpoint)
    else:
        records = evaluate_run(folder, overrides, **checkpoint)
    say("\n".join(record_lines(records)))
    return 0
