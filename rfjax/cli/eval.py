"""`rfjax eval`: measures a checkpoint by its config's evaluations, a sweep of sampling steps, or MLPerf's loss."""

from __future__ import annotations

from rfjax.cli.arguments import add_checkpoint
from rfjax.cli.processes import say
from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path
from rfjax.weight_names import parse_widths


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    steps = "instead: GenEval, path length and distance from the most steps' latents, at each number of sampling steps"
    parser.add_argument("--sampling-steps", metavar="N,N,...", help=steps)
    levels = "instead: MLPerf's validation loss; each line of the file is an example's level, from 0 to 7"
    parser.add_argument("--mlperf-levels", metavar="FILE", type=as_path("--mlperf-levels"), help=levels)

    widths = "instead of --weights: power-function averages of these widths (sigma_rel), such as 0.08,0.12; the run "
    widths += "must be trained with --config.train.power_averages"
    parser.add_argument("--average", metavar="W,W,...", help=widths)
    parser.set_defaults(weights=None)


def run(args, overrides) -> int:
    """Measures the checkpoint, and prints the records."""
    from rfjax.evaluation.evaluate import evaluate_run
    from rfjax.evaluation.records import record_lines

    if args.sampling_steps is not None and args.mlperf_levels is not None:
        raise ConfigError("--sampling-steps and --mlperf-levels are two evaluations; give one at a time")
    folder, checkpoint = args.run, {"step": args.step, "weights": args.weights or "ema"}
    if args.average is not None:
        if args.weights is not None:
            raise ConfigError(f"--average names the weights, and so does --weights={args.weights}; give one of the two")
        if args.sampling_steps is not None or args.mlperf_levels is not None:
            raise ConfigError("--average is for the config's own evaluations; leave out the other evaluation")
        checkpoint["weights"] = parse_widths(args.average)
    if args.mlperf_levels is not None:
        from rfjax.evaluation.mlperf_loss import measure_assigned

        records = measure_assigned(folder, overrides, args.mlperf_levels, **checkpoint)
    elif args.sampling_steps is not None:
        from rfjax.evaluation.step_sweep import measure_sampling_steps, parse_steps

        records = measure_sampling_steps(folder, overrides, parse_steps(args.sampling_steps), **checkpoint)
    else:
        records = evaluate_run(folder, overrides, **checkpoint)
    say("\n".join(record_lines(records)))
    return 0
