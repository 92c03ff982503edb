"""The verbs: what each does, with the arguments that it was given. Wiring only; a verb imports what it needs when
it runs."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from rfjax.cli import arguments
from rfjax.cli.arguments import Verb
from rfjax.errors import ConfigError


def _study(args, overrides):
    from rfjax.study import study as studies

    study = studies.load_study(args.config, overrides)
    if args.point:
        study.point(args.point)  # known, also for a dry run
    if args.dry_run:
        print("\n".join(studies.dry_run_lines(study)))
        return 0
    root = Path(args.workdir or Path("runs") / study.name)
    failed = []
    if args.point:
        studies.run_point(study, study.point(args.point), root)
        _say(
            f"point {args.point} is trained and evaluated in {root / args.point}; collect with: "
            f"rfjax study --config={args.config} --workdir={root} --collect"
        )
        return 0
    notes = studies.strangers(study, root) if args.collect else []
    if not args.collect:
        failed = [outcome for outcome in studies.run_study(study, root) if outcome.error]
    if not _is_first():
        return 1 if failed else 0
    try:
        table = _collect(study, root)
    finally:  # what failed is said even where there is nothing to collect
        for outcome in failed:
            print(f"failed: {outcome.point.id}: {outcome.error}", file=sys.stderr)
    _print_notes([*notes, *table.notes])
    return 1 if failed or table.unreadable else 0


def _is_first() -> bool:
    from rfjax.training.processes import distributed

    return distributed.is_first()


def _say(text: str) -> None:
    """On standard output, by one process."""
    if _is_first():
        print(text, flush=True)


def _print_notes(notes):
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _collect(study, root):
    """Prints what the study's runs say; returns their table."""
    from rfjax.report.write import summary_lines, write_report
    from rfjax.results.merge import collect, run_folders

    known = {point.id for point in study.points}
    runs = [folder for folder in run_folders(root) if folder.name in known] if root.is_dir() else []
    if not runs:
        raise ConfigError(f"no point of {study.name} has been run in {root}; leave --collect out to run them")
    table = collect(runs, root / "results")
    numbers = write_report(root / "results", root / "report")
    print("\n".join(summary_lines(numbers)))
    print(f"\nresults: {root / 'results'}\nreport:  {root / 'report' / 'index.html'}")
    return table


def _train(args, overrides):
    from rfjax import config as configs
    from rfjax.study.run import run_config
    from rfjax.study.study import Point, describe, size_of

    config = configs.load(args.config, overrides)
    _say(describe(Point(args.workdir, config), size_of(config)))
    run_config(config, Path(args.workdir), init_from=args.init, evaluate=not args.no_evaluation)
    _say(f"trained: {args.workdir}")
    return 0


def _eval(args, overrides):
    from rfjax.evaluation.evaluate import evaluate_run
    from rfjax.evaluation.records import record_lines

    if args.sampling_steps and args.mlperf_levels:
        raise ConfigError("--sampling-steps and --mlperf-levels are two evaluations; give one at a time")
    if args.mlperf_levels:
        from rfjax.evaluation.mlperf_loss import measure_assigned

        _say(
            "\n".join(
                record_lines(
                    measure_assigned(
                        Path(args.run), overrides, Path(args.mlperf_levels), step=args.step, weights=args.weights
                    )
                )
            )
        )
        return 0
    if args.sampling_steps:
        from rfjax.evaluation.step_sweep import measure_sampling_steps, parse_steps

        counts = parse_steps(args.sampling_steps)
        _say(
            "\n".join(
                record_lines(
                    measure_sampling_steps(Path(args.run), overrides, counts, step=args.step, weights=args.weights)
                )
            )
        )
        return 0
    _say("\n".join(record_lines(evaluate_run(Path(args.run), overrides, step=args.step, weights=args.weights))))
    return 0


def _sample(args, overrides):
    from rfjax.evaluation.samples.folder import sample_folder
    from rfjax.evaluation.samples.picture import sample_picture
    from rfjax.evaluation.samples.request import Wanted

    if bool(args.prompt) == bool(args.prompts):
        raise ConfigError("rfjax sample needs captions: give --prompt TEXT, once or more, or --prompts FILE")
    if args.sigmas:
        overrides = {**overrides, "evaluation.sampler.sigmas": args.sigmas}
    wanted = Wanted(
        step=args.step,
        weights=args.weights,
        samples=args.samples,
        negative=args.negative,
        seed=args.seed,
        latent_size=_latent_size(args.latent_size),
        encoders=tuple(name for name in (args.encoders or "").split(",") if name),
    )
    run = Path(args.run)
    if args.prompt:
        path = sample_picture(run, overrides, wanted, prompts=args.prompt, out=Path(args.out or "samples.png"))
        _say(f"samples: {path}")
        return 0
    path = sample_folder(
        run, overrides, wanted, prompts_file=Path(args.prompts), layout=args.layout, out=Path(args.out or "samples")
    )
    _say(f"samples: {path}\nscore them with: rfjax score {path} --metric={args.layout} --run={args.run}")
    return 0


def _latent_size(text):
    """(height, width) of HxW, None of nothing."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(f"--latent-size is {text!r}; it must be height x width in latent pixels, as 40x24")
    return int(sides[0]), int(sides[1])


def _export(args, overrides):
    from rfjax.interop.exporting import export_run, how_to_call

    with _tidy_when_terminated():
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


def _import(args, overrides):
    from rfjax import config as configs
    from rfjax.interop.importing import import_checkpoint, lines

    base = configs.load(args.config) if args.config else None
    with _tidy_when_terminated():
        imported = import_checkpoint(Path(args.source), Path(args.out), base=base, overrides=overrides)
    print("\n".join(lines(imported, Path(args.out))))
    return 0


@contextlib.contextmanager
def _tidy_when_terminated():
    """Makes SIGTERM an exit that runs what must be run on the way out, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _geneval(args, overrides):
    from rfjax.evaluation.geneval import files

    return files.run(args)


def _score(args, overrides):
    from rfjax.scorers import command

    return command.run(args)


def _fit(args, overrides):
    from rfjax.report import fit_command

    return fit_command.run(args)


def _plan(args, overrides):
    from rfjax.plan import command

    return command.run(args, overrides)


def _prepare(args, overrides):
    from rfjax.prepare import command

    with _tidy_when_terminated():
        return command.run(args)


def _duplicates(args, overrides):
    from rfjax.duplicates import command

    with _tidy_when_terminated():
        return command.run(args)


def _recaption(args, overrides):
    from rfjax.prepare import recaption

    with _tidy_when_terminated():
        return recaption.run(args)


def _inspect(args, overrides):
    from rfjax.prepare import inspect

    return inspect.run(args)


def _launch(args, overrides):
    from rfjax.launch import command

    return command.run(args, overrides)


def _bench(args, overrides):
    from rfjax.bench import command

    return command.run(args, overrides)


def _report(args, overrides):
    from rfjax.report.write import summary_lines, write_report
    from rfjax.results.merge import collect, run_folders
    from rfjax.results.results_folder import find

    results, unreadable = find(args.runs), 0
    if not (results / "table.json").exists():
        table = collect(run_folders(args.runs), results)
        unreadable = table.unreadable
        _print_notes(table.notes)
    numbers = write_report(results, Path(args.out) if args.out else results.parent / "report")
    print("\n".join(summary_lines(numbers)))
    return 1 if unreadable else 0  # the report is of the others


VERBS = {
    "prepare": Verb(
        "make a corpus of images and captions", arguments.prepare, _prepare, overridable=False, computes=False
    ),
    "duplicates": Verb(
        "find near-duplicate images, to leave out of a corpus",
        arguments.duplicates,
        _duplicates,
        overridable=False,
        computes=False,
    ),
    "recaption": Verb(
        "write captions of images by a model, for prepare",
        arguments.recaption,
        _recaption,
        overridable=False,
        computes=False,
    ),
    "inspect": Verb(
        "show and verify a prepared corpus", arguments.inspect, _inspect, overridable=False, computes=False
    ),
    "plan": Verb("what a study takes on a TPU slice or GPU nodes, before paying", arguments.plan, _plan),
    "bench": Verb("time a config's training step on the devices here, part by part", arguments.bench, _bench),
    "study": Verb(
        "run a study: train every point, evaluate, fit, report", arguments.study, _study, together=True, resumes=True
    ),
    "launch": Verb("run a study's points on SLURM, TPU VMs or GKE", arguments.launch, _launch, computes=False),
    "train": Verb("train one run, or resume it", arguments.train, _train, together=True, resumes=True),
    "eval": Verb("measure a checkpoint: validation loss, GenEval, ranking", arguments.eval_, _eval, together=True),
    "sample": Verb("make images from captions", arguments.sample, _sample, together=True),
    "export": Verb("write a checkpoint for PyTorch", arguments.export, _export, overridable=False),
    "import": Verb("make a run of a PyTorch checkpoint", arguments.import_, _import),
    "geneval": Verb(
        "score detections by GenEval's rules", arguments.geneval, _geneval, overridable=False, computes=False
    ),
    "score": Verb(
        "score a folder of images: GenEval, FID, CMMD, CLIP score",
        arguments.score,
        _score,
        overridable=False,
        computes=False,
    ),
    "fit": Verb("fit scaling laws to a results table", arguments.fit, _fit, overridable=False, computes=False),
    "report": Verb(
        "remake the report: from a results folder alone, or from the runs in a folder",
        arguments.report,
        _report,
        overridable=False,
        computes=False,
    ),
}
