"""`rfjax plan`: what a study takes on hardware that is not there."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Nothing heavy is imported for `--help`."""
    parser.add_argument("--config", required=True, metavar="FILE.py|NAME", help="a study or a run")
    parser.add_argument(
        "--target",
        required=True,
        metavar="NAME",
        help="v4-128, v5p-256 (TensorCores), v5e-256, v6e-256 (chips), h100x64 (GPUs)",
    )
    parser.add_argument(
        "--point", action="append", metavar="ID", help="plan this point only; may be given several times"
    )
    parser.add_argument("--price", type=float, metavar="P", help="of a chip-hour; gives a cost in the same currency")
    parser.add_argument("--no-compile", action="store_true", help="formulas alone: seconds, and memory is an estimate")
    parser.add_argument(
        "--search", action="store_true", help="look for the cheapest layout even where the config's own fits"
    )
    parser.add_argument(
        "--optimisation",
        choices=("O0", "O1", "default"),
        default="default",
        help="of the compiler; lower is faster (default: default)",
    )
    parser.add_argument(
        "--out", metavar="FILE.json", help="write every number of the plan here, and a page beside it (FILE.html)"
    )


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Plans the points of a study; returns 0, or 1 where a point fits in no layout."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs here: no accelerator is to be taken, or missed
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.plan.compiled import why_not
    from rfjax.plan.point_plan import plan_point
    from rfjax.plan.targets import parse_target
    from rfjax.study.study import load_study

    if args.price is not None and not 0 <= args.price < float("inf"):
        raise ConfigError(f"--price is {args.price}; it must be a number that is not negative")
    if args.out and not args.out.endswith(".json"):
        raise ConfigError(f"--out is {args.out}; its name must end in .json, and the page's ends in .html")
    target = parse_target(args.target)
    study = load_study(args.config, overrides)
    points = [study.point(id) for id in args.point] if args.point else list(study.points)
    reason = why_not(target)
    if reason and not args.no_compile:
        raise ConfigError(f"cannot compile for {target.name}: {reason}, or give --no-compile")
    compiles = not args.no_compile
    print(target.describe(), flush=True)
    plans = []
    for point in points:
        plans.append(
            plan_point(
                point,
                target,
                compiles=compiles,
                optimisation=args.optimisation,
                search=args.search,
                price=args.price,
                say=lambda line: print(line, flush=True),
            )
        )
    said = notes(plans, target, compiles, args.optimisation)
    print("\n".join(["", *table(plans), *said]))
    if args.out:
        from rfjax.plan.page import render

        content = {
            "schema": 1,
            "study": study.name,
            "target": target.name,
            "chips": target.chips,
            "cores": target.cores,
            "hbm_bytes": target.chip.hbm_bytes,
            "source": target.chip.source,
            "compiled": compiles,
            "price": args.price,
            "points": [plan.to_json() for plan in plans],
        }
        out, page = Path(args.out), Path(args.out).with_suffix(".html")
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_whole({out: text, page: render(content, target.describe(), said)})
        print(f"plan: {out}, {page}")
    return 0 if all(plan.fits for plan in plans) else 1


HEADER = (
    "point",
    "params",
    "FLOPs",
    "mesh",
    "remat",
    "micro",
    "state",
    "peak",
    "fits",
    "compute",
    "memory",
    "links",
    "slowest",
    "days",
    "chip-hours",
    "cost",
)


def _row(plan) -> tuple[str, ...]:
    from rfjax.report.formats import amount

    gib = lambda count: "-" if count is None else f"{count / 2**30:.2f}"  # noqa: E731
    estimated, limits, spent, train = plan.estimate, plan.limits, plan.cost, plan.config.train
    mesh = "x".join(map(str, estimated.mesh.values())) if estimated else "-"
    row = (plan.point, f"{plan.size.params:,}", f"{plan.size.flops:.3g}", mesh, train.remat, str(train.accumulate))
    row += (gib(estimated and estimated.state_bytes), gib(plan.peak_bytes), "yes" if plan.fits else "NO")
    if limits is None:
        return row + ("-",) * 7
    times = tuple(amount(1e3 * seconds) for seconds in (limits.compute, limits.memory, limits.links))
    money = "-" if spent.money is None else amount(spent.money)
    return row + times + (limits.slowest, amount(spent.days, 1), amount(spent.chip_hours), money)


def _attention_note(plans, target, compiles: bool) -> str:
    """Which attention a run would use, and which the numbers are of."""
    from rfjax.plan.compiled import COMPILED_INSTEAD

    names = ", ".join(sorted({plan.attention for plan in plans}))
    if compiles:
        other = ", ".join(
            sorted({COMPILED_INSTEAD[plan.attention] for plan in plans if plan.attention in COMPILED_INSTEAD})
        )
        if other:
            return (
                f"Attention of a run on {target.name}: {names}, which cannot be compiled without its library; "
                f"{other} was, an upper bound of memory and traffic."
            )
        return f"Attention is that of a run on {target.name}: {names}."
    return (
        f"Attention of a run on {target.name}: {names}; the estimates of memory and traffic are those of xla, an "
        "upper bound."
    )


def table(plans: Sequence) -> list[str]:
    """The plan as a table for the console."""
    rows = [HEADER, *(_row(plan) for plan in plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def notes(plans: Sequence, target, compiles: bool, optimisation: str) -> list[str]:
    """What the numbers of a plan mean, and what was found on the way."""
    how = (
        f"Peak memory, operations and exchanges are those of the program compiled for {target.name} (level "
        f"{optimisation})."
        if compiles
        else "Nothing was compiled (--no-compile): peak memory and traffic are estimates."
    )
    said = [
        f"{how} {_attention_note(plans, target, compiles)}",
        f"GiB per device, of {target.chip.hbm_bytes / 2**30:.2f}; milliseconds of a step by each limit; mesh is data "
        "x fsdp x tensor.",
        "Days and chip-hours at the roofline, the time of the slowest limit: real steps take longer.",
    ]
    for plan in plans:
        said += [f"{plan.point}: {note}" for note in plan.notes]
        if plan.compiled and plan.compiled.counts:
            counts = plan.compiled.counts
            kinds = sorted({item.kind for item in counts.collectives})
            sent = ", ".join(
                f"{kind} {sum(c.sent for c in counts.collectives if c.kind == kind) / 1e9:.2f} GB" for kind in kinds
            )
            kernels = (
                f"; {counts.kernel_flops / counts.flops:.1%} of them in {plan.attention} kernels, padding included"
            )
            said.append(
                f"{plan.point}: arguments {plan.compiled.argument_bytes / 2**30:.2f} GiB, temporaries "
                f"{plan.compiled.temporary_bytes / 2**30:.2f}; a device sends {sent}; largest all-gather "
                f"{counts.largest_all_gather / 2**20:.1f} MiB; compiled operations over the formula's "
                f"{counts.flops / plan.estimate.flops:.4f}{kernels if counts.kernel_flops else ''}"
            )
    return said
