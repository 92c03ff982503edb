"""`rfjax`: one command, a verb per job. Wiring only; JAX is imported when a verb needs it."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import os
import re
import signal
import sys
import traceback
from pathlib import Path

from rfjax.errors import ConfigError, Preempted, RfjaxError

OVERRIDE = re.compile(r"--config\.([A-Za-z0-9_.]+)(?:=(.*))?", re.DOTALL)
OVERRIDE_HELP = "any field of the config can be overridden: --config.model.depth=3 --config.train.steps=500"


def _study(args, overrides):
    from rfjax.scaling import study as studies

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
        _say(f"point {args.point} is trained and evaluated in {root / args.point}; collect with: "
              f"rfjax study --config={args.config} --workdir={root} --collect")
        return 0
    notes = studies.strangers(study, root) if args.collect else []
    if not args.collect:
        failed = [outcome for outcome in studies.run_study(study, root) if outcome.error]
    if not _is_first():
        return 1 if failed else 0
    try:
        notes += _collect(study, root)
    finally:  # what failed is said even where there is nothing to collect
        for outcome in failed:
            print(f"failed: {outcome.point.id}: {outcome.error}", file=sys.stderr)
    _print_notes(notes)
    return 1 if failed else 0


def _is_first() -> bool:
    from rfjax.training import distributed

    return distributed.is_first()


def _say(text: str) -> None:
    """On standard output, by one process."""
    if _is_first():
        print(text, flush=True)


def _print_notes(notes):
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _collect(study, root):
    """Prints what the study's runs say; returns notes on what was left out."""
    from rfjax.scaling.report import summary_lines, write_report
    from rfjax.scaling.table import collect, run_folders

    known = {point.id for point in study.points}
    runs = [folder for folder in run_folders(root) if folder.name in known] if root.is_dir() else []
    if not runs:
        raise ConfigError(f"no point of {study.name} has been run in {root}; leave --collect out to run them")
    table = collect(runs, root / "results")
    numbers = write_report(root / "results", root / "report")
    print("\n".join(summary_lines(numbers)))
    print(f"\nresults: {root / 'results'}\nreport:  {root / 'report' / 'index.html'}")
    return table.notes


def _train(args, overrides):
    from rfjax import config as configs
    from rfjax.scaling.study import Point, describe, run_config, size_of

    config = configs.load(args.config, overrides)
    _say(describe(Point(args.workdir, config), size_of(config)))
    run_config(config, Path(args.workdir), init_from=args.init, evaluate=not args.no_evaluation)
    _say(f"trained: {args.workdir}")
    return 0


def _eval(args, overrides):
    from rfjax.evaluation.reopen import evaluate_run, record_lines

    if args.sampling_steps:
        from rfjax.evaluation.sampling_steps import measure_sampling_steps, parse_steps

        counts = parse_steps(args.sampling_steps)
        _say("\n".join(record_lines(measure_sampling_steps(Path(args.run), overrides, counts, step=args.step, weights=args.weights))))
        return 0
    _say("\n".join(record_lines(evaluate_run(Path(args.run), overrides, step=args.step, weights=args.weights))))
    return 0


def _sample(args, overrides):
    from rfjax.evaluation.reopen import sample_run

    if args.sigmas:
        overrides = {**overrides, "evaluation.sampler.sigmas": args.sigmas}
    path = sample_run(
        Path(args.run),
        overrides,
        prompts=args.prompt,
        out=Path(args.out),
        step=args.step,
        weights=args.weights,
        samples=args.samples,
        negative=args.negative,
        seed=args.seed,
    )
    _say(f"samples: {path}")
    return 0


def _export(args, overrides):
    from rfjax.interop.exporting import export_run

    with _tidy_when_terminated():
        path = export_run(
            Path(args.run),
            layout=args.format,
            out=Path(args.out),
            step=args.step,
            weights=args.weights,
            dtype=args.dtype,
            max_shard_bytes=args.max_shard_gb * 1e9,
        )
    print(f"exported: {path}")
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
    from rfjax.evaluation import geneval_files

    return geneval_files.run(args)


def _fit(args, overrides):
    from rfjax.scaling import fit_command

    return fit_command.run(args)


def _plan(args, overrides):
    from rfjax.scaling.plan import command

    return command.run(args, overrides)


def _launch(args, overrides):
    from rfjax.launch import command

    return command.run(args, overrides)


def _bench(args, overrides):
    from rfjax.scaling.bench import command

    return command.run(args, overrides)


def _report(args, overrides):
    from rfjax.scaling.report import summary_lines, write_report
    from rfjax.scaling.results import find
    from rfjax.scaling.table import collect, run_folders

    results = find(args.runs)
    if not (results / "table.json").exists():
        _print_notes(collect(run_folders(args.runs), results).notes)
    numbers = write_report(results, Path(args.out) if args.out else results.parent / "report")
    print("\n".join(summary_lines(numbers)))
    return 0


def _study_arguments(parser):
    parser.add_argument("--config", required=True, metavar="FILE.py", help="get_config() and points()")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<name of the study>")
    parser.add_argument("--point", metavar="ID", help="train and evaluate this point only")
    parser.add_argument("--collect", action="store_true", help="merge, fit and report what has been run; train nothing")
    parser.add_argument("--dry-run", action="store_true", help="list the points with parameters, FLOPs and state bytes")


def _train_arguments(parser):
    parser.add_argument("--config", required=True, metavar="FILE.py", help="a file with get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder; the same command resumes it")
    parser.add_argument("--init", metavar="RUN@STEP", help="start a new run from this checkpoint's weights")
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def _process_arguments(parser):
    group = parser.add_argument_group(
        "many processes",
        "the same command in every process; under SLURM (srun), on Kubernetes and on TPUs nothing need be given",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is to listen")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0 to N-1")
    group.add_argument("--lost-after", type=int, default=60, metavar="SECONDS",
                       help="a process not heard of for so long is lost, and ends the job (default 60)")  # fmt: skip


def _checkpoint_arguments(parser):
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: ema")


def _eval_arguments(parser):
    _checkpoint_arguments(parser)
    parser.add_argument("--sampling-steps", metavar="N,N,...", help="instead: GenEval, path length and distance at these counts of sampling steps, the most being the reference")


def _sample_arguments(parser):
    _checkpoint_arguments(parser)
    parser.add_argument("--prompt", action="append", required=True, help="a caption; may be given several times")
    parser.add_argument("--negative", metavar="TEXT", help='encoded negative prompt, "" too (default: the null condition, zeros)')
    parser.add_argument(
        "--sigmas",
        choices=("uniform", "diffusers"),
        help="the times of the steps: equal ones, or those of diffusers' FlowMatchEulerDiscreteScheduler "
        "(default: config.evaluation.sampler.sigmas)",
    )
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="images per prompt (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--out", default="samples.png", metavar="FILE.png", help="one row per prompt (default samples.png)")


def _export_arguments(parser):
    _checkpoint_arguments(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("diffusers", "sd3", "plain"),
        help="diffusers: a folder for SD3Transformer2DModel; sd3: the single file of SD3 and SD3.5; "
        "plain: our names, and a PyTorch module that reads them, for every model",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="a folder, or for sd3 a file .safetensors")
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="default: f32, as trained")
    parser.add_argument("--max-shard-gb", type=float, default=10.0, metavar="GB", help="split files at this size (default 10)")


def _import_arguments(parser):
    parser.add_argument("source", metavar="SOURCE", help="a folder of safetensors, or one such file")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run's folder, to be made")
    parser.add_argument("--config", metavar="FILE.py", help="corpus, training and evaluation (default: as exported)")


def _geneval_arguments(parser):
    from rfjax.evaluation import geneval_files

    geneval_files.add_arguments(parser)


def _fit_arguments(parser):
    from rfjax.scaling import fit_command

    fit_command.add_arguments(parser)


def _plan_arguments(parser):
    from rfjax.scaling.plan import command

    command.add_arguments(parser)


def _launch_arguments(parser):
    from rfjax.launch import command

    command.add_arguments(parser)


def _bench_arguments(parser):
    from rfjax.scaling.bench import command

    command.add_arguments(parser)


def _report_arguments(parser):
    parser.add_argument("runs", metavar="RUNS", help="a study's folder, or its results folder")
    parser.add_argument("--out", metavar="DIR", help="default: report, beside the results")


# verb -> (what it does, its arguments, its action, takes --config.* overrides, computes with JAX)
VERBS = {
    "plan": ("what a study takes on a TPU slice or GPU nodes, before paying", _plan_arguments, _plan, True, True),
    "bench": ("time a config's training step on the devices here, part by part", _bench_arguments, _bench, True, True),
    "study": ("run a study: train every point, evaluate, fit, report", _study_arguments, _study, True, True),
    "launch": ("run a study's points on SLURM, TPU VMs or GKE", _launch_arguments, _launch, True, False),
    "train": ("train one run, or resume it", _train_arguments, _train, True, True),
    "eval": ("measure a checkpoint: validation loss and GenEval", _eval_arguments, _eval, True, True),
    "sample": ("make images from captions", _sample_arguments, _sample, True, True),
    "export": ("write a checkpoint for PyTorch", _export_arguments, _export, False, True),
    "import": ("make a run of a PyTorch checkpoint", _import_arguments, _import, True, True),
    "geneval": ("score detections by GenEval's rules", _geneval_arguments, _geneval, False, False),
    "fit": ("fit scaling laws to a results table", _fit_arguments, _fit, False, False),
    "report": ("remake the report: from a results folder alone, or from the runs in a folder", _report_arguments, _report, False, False),
}


TOGETHER = ("study", "train", "eval", "sample")  # what many processes may do as one
RESUMES = ("study", "train")  # what goes on where it was told to stop


class _VerbParser(argparse.ArgumentParser):
    """A parser that knows the options it was given."""

    @property
    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]  # those of groups, too

    def check_options(self, words: list[str]) -> None:
        """Raises `ConfigError` with the nearest option for one that is unknown.

        argparse names no other, and where a required option is the misspelt one it asks for that.
        """
        for word in itertools.takewhile(lambda word: word != "--", words):
            option = word.split("=")[0]
            if option.startswith("--") and option not in self.options:
                start = option.split(".")[0]  # of a field of the config
                near = difflib.get_close_matches(start, self.options if start == option else ["--config"], 1)
                hint = f"did you mean {option.replace(start, near[0], 1)}?" if near else f"{self.prog} --help lists them"
                raise ConfigError(f"{self.prog} has no option {option}; {hint}")


def _parsers(verb: str | None) -> tuple[argparse.ArgumentParser, dict[str, _VerbParser]]:
    """The parser of the command line, and by name those of the verbs; of these, `verb`'s alone is whole."""
    parser = argparse.ArgumentParser(
        prog="rfjax", description="Scaling studies of rectified-flow text-to-image transformers.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    for name, (text, arguments, _, overridable, _) in VERBS.items():
        epilog = OVERRIDE_HELP if overridable else None
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, allow_abbrev=False)
        if name == verb:  # the others' arguments need not be imported
            arguments(sub)
            if name in TOGETHER:
                _process_arguments(sub)
    return parser, verbs.choices


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without `--config.KEY=VALUE` (or `--config.KEY VALUE`), and those as a mapping."""
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        match = OVERRIDE.fullmatch(word)
        if not match:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            raise ConfigError(f"{word} has no value; write {word}=VALUE")
        overrides[match[1]] = value
    return rest, overrides


def _with_huge_pages(argv: list[str]) -> None:
    """Starts the process again with huge pages for the allocator, where glibc would not use them.

    On a CPU the step's temporaries are mapped and unmapped each time; with 4 KiB pages the page
    faults take a third of the step (analysis/benchmarks). The setting is read at start-up only.
    """
    setting = "glibc.malloc.hugetlb=1"
    present = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in present:
        return
    os.environ["GLIBC_TUNABLES"] = f"{present}:{setting}" if present else setting
    os.execv(sys.executable, [sys.executable, "-m", "rfjax", *argv])


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status (`rfjax.errors` says which means what)."""
    from_shell = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        rest, overrides = split_overrides(argv)
        verb = next((word for word in rest if not word.startswith("-")), None)
        parser, verbs = _parsers(verb)
        if verb in verbs:
            verbs[verb].check_options(rest)
        args = parser.parse_args(rest)
        _, _, action, overridable, computes = VERBS[args.verb]
        if overrides and not overridable:
            raise ConfigError(f"rfjax {args.verb} reads no config; leave out --config.{next(iter(overrides))}")
        if computes and from_shell:
            _with_huge_pages(argv)
        if args.verb not in TOGETHER:
            return action(args, overrides)
        return _together(args, lambda: action(args, overrides), from_shell)
    except (RfjaxError, KeyboardInterrupt, BrokenPipeError) as error:
        return _ended(error)


def _together(args, act, from_shell) -> int:
    """`act()` with the processes of this job, if there are others; its exit status, or its error's."""
    with _told_early() if from_shell and args.verb in RESUMES else contextlib.nullcontext():
        if getattr(args, "dry_run", False) or getattr(args, "collect", False):
            return act()
        from rfjax.training import cluster, distributed

        if args.lost_after < 5:
            raise ConfigError(f"--lost-after is {args.lost_after}; a busy machine is silent for a few seconds: give at least 5")
        try:
            job = cluster.find_job(args.coordinator, args.processes, args.process_id)
            distributed.join(job, heartbeat_seconds=args.lost_after)
            if job:
                who = f"process {job.process_id} of {job.processes}, by {job.origin}"
                print(f"rfjax: {who}: all have come together at {job.coordinator}", file=sys.stderr, flush=True)
            status = act()
        except BaseException as error:
            if not distributed.many():
                raise
            return distributed.leave(_ended(distributed.explained(error)), alone=True)
        return distributed.leave(status)


@contextlib.contextmanager
def _told_early():
    """Makes SIGTERM the end that schedulers requeue on, also while nothing polls for it: during imports,
    or while the other processes are awaited."""

    def stop(*_):
        raise Preempted("told to stop before anything was begun, or after it was done; give the same command again")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(error: BaseException) -> int:
    """Says how it ended, and gives the exit status."""
    try:
        raise error
    except RfjaxError:
        print(f"rfjax: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("rfjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
