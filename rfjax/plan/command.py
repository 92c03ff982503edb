"""`rfjax plan`: predicts what a study takes on hardware that is not at hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from rfjax.inputs.paths import as_path, as_text
from rfjax.mesh_axes import LAYOUT, SLICE_AXIS
from rfjax.plan.sample_options import add_sample_options, check_sample_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    add("--config", required=True, metavar="FILE.py|NAME", type=as_text("--config"), help="a study or a run")
    targets = "v4-128, v5p-256, tpu7x-256 (TensorCores), v5e-256, v6e-256 (chips), h100x64, b200x64, rtx4090x1 (GPUs); "
    targets += "2xv5p-256: two slices"
    add("--target", required=True, metavar="NAME", help=targets)
    add("--point", action="append", metavar="ID", help="plan this point only; may be repeated")
    add("--price", type=float, metavar="P", help="price of a chip-hour; gives a cost in the same currency")
    add("--no-compile", action="store_true", help="use formulas alone: takes seconds, and memory is an estimate")
    add("--search", action="store_true", help="look for the cheapest layout even where the config's own fits")
    level = "the compiler's optimisation level; lower compiles faster (default: default)"
    flags = "compile without the XLA flags that rfjax sets on GPUs and TPUs"
    add("--no-xla-flags", action="store_true", help=flags)
    add("--optimisation", choices=("O0", "O1", "default"), default="default", help=level)
    add_sample_options(parser, "plan images, not training: seconds and memory of a batch")
    out = "write every number of the plan here, and a page beside it (FILE.html)"
    add("--out", metavar="FILE.json", type=as_path("--out"), help=out)


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Plans the training of a study's points or, with `--sample`, their sampling. Returns 1 if something that was
    planned does not fit the target, else 0."""
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.outputs import check_output, is_json_with
    from rfjax.plan.compiled import Compiler, check_compiler, why_not_compiled
    from rfjax.plan.point_plan import plan_point
    from rfjax.plan.sample_command import check_no_training, plan_samples
    from rfjax.plan.targets import check_network, parse_target
    from rfjax.study.study import load_study

    check_sample_options(args)
    check_no_training(args)
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise ConfigError(f"--price is {args.price}; it must be a number that is not negative")
    if args.no_xla_flags and args.no_compile:
        raise ConfigError("--no-xla-flags is for the compiler, and --no-compile leaves it out; give one of the two")
    if args.out is not None and args.out.suffix != ".json":
        raise ConfigError(f"--out is {args.out}; its name must end in .json, and the page's ends in .html")
    if args.out is not None:
        ours = is_json_with("schema", "study", "target", "samples" if args.sample else "points")
        for path in (args.out,) if args.sample else (args.out, args.out.with_suffix(".html")):
            check_output(path, "--out", made_here=lambda _: ours(args.out))
    target = parse_target(args.target)
    check_network(target)
    study = load_study(args.config, overrides)
    points = [study.point(id) for id in args.point] if args.point is not None else study.points
    say = lambda line: print(line, flush=True)  # noqa: E731
    if args.sample:
        say(target.describe())
        return plan_samples(args, study, points, target, say)
    compiles = not args.no_compile and why_not_compiled(target.chip) is None
    if compiles:
        check_compiler(target)
    say(target.describe())
    compiler = Compiler(args.optimisation, not args.no_xla_flags) if compiles else None
    settings = {"compiler": compiler, "search": args.search, "price": args.price}
    plans = [plan_point(point, target, **settings, say=say) for point in points]
    said = notes(plans, target, compiles)
    print("\n".join(["", *table(plans, target.slices), *said]))
    if args.out is not None:
        from rfjax.plan.page import render

        content = {
            "schema": 1,
            "study": study.name,
            **target.facts,
            "compiled": compiles,
            "price": args.price,
            "points": [plan.to_json() for plan in plans],
        }
        out, page = args.out, args.out.with_suffix(".html")
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_whole({out: text, page: render(content, target.describe(), said)})
        print(f"plan: {out}, {page}")
    return 0 if all(plan.fits for plan in plans) else 1


LAYOUT_COLUMNS = "point params FLOPs mesh remat micro state peak fits".split()
COST_COLUMNS = "slowest days chip-hours cost".split()


def _row(plan, times: Sequence[str]) -> tuple[str, ...]:
    from rfjax.report.formats import amount

    gib = lambda count: "-" if count is None else f"{count / 2**30:.2f}"  # noqa: E731
    estimated, limits, spent, train = plan.estimate, plan.limits, plan.cost, plan.config.train
    mesh = "x".join(map(str, estimated.mesh.values())) if estimated else "-"
    row = (plan.point, f"{plan.size.params:,}", f"{plan.size.flops:.3g}", mesh, train.remat, str(train.accumulate))
    row += (gib(estimated and estimated.state_bytes), gib(plan.peak_bytes), "yes" if plan.fits else "NO")
    if limits is None:
        return row + ("-",) * (len(times) + len(COST_COLUMNS))
    row += tuple(amount(1e3 * getattr(limits, name)) for name in times)
    money = "-" if spent.money is None else amount(spent.money)
    return row + (limits.slowest, amount(spent.days, 1), amount(spent.chip_hours), money)


def _attention_note(plans, target, compiles: bool) -> str:
    """Says which attention implementation a run uses on the target, and which one the plan's numbers assume."""
    from rfjax.plan.compiled import COMPILED_INSTEAD

    used = {plan.attention for plan in plans}
    names, instead = ", ".join(sorted(used)), sorted({COMPILED_INSTEAD[name] for name in used & set(COMPILED_INSTEAD)})
    if not compiles:
        bound = "the estimates of memory and traffic are those of xla, an upper bound"
        return f"Attention of a run on {target.name}: {names}; {bound}."
    if not instead:
        return f"Attention is that of a run on {target.name}: {names}."
    compiled = f"{', '.join(instead)} was compiled in its place, an upper bound of memory and traffic"
    return f"Attention of a run on {target.name}: {names}, which cannot be compiled without its library; {compiled}."


def table(plans: Sequence, slices: int) -> list[str]:
    """Returns the lines of a plan's table for the console. `slices` is the target's number of slices."""
    from rfjax.console import format_table
    from rfjax.plan.roofline import limits_of

    times = limits_of(slices)
    return format_table([[*LAYOUT_COLUMNS, *times, *COST_COLUMNS], *(_row(plan, times) for plan in plans)])


def notes(plans: Sequence, target, compiles: bool) -> list[str]:
    """Returns the lines under a plan's table: what its numbers mean, and what planning found."""
    from rfjax.plan.compiled import describe_settings, why_not_compiled
    from rfjax.plan.gpu_description import DESCRIPTIONS
    from rfjax.plan.roofline import precision_note

    why = why_not_compiled(target.chip) or "--no-compile"
    how = f"Nothing was compiled ({why}): peak memory and traffic are estimates."
    if compiles:
        program = f"the program compiled for {target.name} ({describe_settings(plan.compiled for plan in plans)})"
        how = f"Peak memory, operations and exchanges are those of {program}."
        if target.chip.kind == "cuda" and DESCRIPTIONS[target.chip.name].by_hand:
            how += f" XLA's description of {target.chip.name} was written by hand from white papers."
    gib = f"{target.chip.device_bytes / 2**30:.2f}"
    said = [
        f"{how} {_attention_note(plans, target, compiles)}",
        f"Memory is in GiB per device, of {gib}; times are milliseconds of a step by each limit; mesh is {LAYOUT}.",
        "Days and chip-hours are at the roofline, the time of the slowest limit: real steps take longer.",
    ]
    said += precision_note(target, (plan.config.train for plan in plans))
    if target.slices > 1:
        said.append(f"Network: what {target.slices} slices exchange; only {SLICE_AXIS} goes over slices.")
    for plan in plans:
        said += [f"{plan.point}: {note}" for note in plan.notes]
        if plan.compiled and plan.compiled.counts:
            said.append(f"{plan.point}: {_counts_note(plan)}")
    return said


def _counts_note(plan) -> str:
    """Describes the memory, exchanges and operations of a plan's compiled program."""
    compiled, counts = plan.compiled, plan.compiled.counts
    sent: dict[str, float] = {}
    for exchange in counts.collectives:
        kind = f"{exchange.kind}{' between slices' if exchange.between_slices else ''}"
        sent[kind] = sent.get(kind, 0.0) + exchange.sent
    kernels = f"; {counts.kernel_flops / counts.flops:.1%} of them in {plan.attention} kernels, padding included"
    return (
        f"arguments {compiled.argument_bytes / 2**30:.2f} GiB, temporaries {compiled.temporary_bytes / 2**30:.2f}; "
        f"a device sends {', '.join(f'{kind} {sent[kind] / 1e9:.2f} GB' for kind in sorted(sent))}; "
        f"largest all-gather {counts.largest_all_gather / 2**20:.1f} MiB; compiled operations over the formula's "
        f"{counts.flops / plan.estimate.flops:.4f}{kernels if counts.kernel_flops else ''}"
    )
