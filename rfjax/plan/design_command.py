"""`rfjax design`: chooses the trunks and branches to train next, so that a law predicts the loss at `--target` best."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from rfjax.inputs.paths import as_path, as_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    sizes = "a study whose points give the sizes to choose from, and the rest of each run"
    add("--config", required=True, metavar="FILE.py|NAME", type=as_text("--config"), help=sizes)
    budget = "training FLOPs that the new points may take in all"
    add("--budget", required=True, type=float, metavar="FLOPS", help=budget)
    target = "compute-optimal training FLOPs at which the loss is to be predicted"
    add("--target", required=True, type=float, metavar="FLOPS", help=target)
    given = "results so far: a study's folder, or a table with params, images, flops and loss (and trunk, seed)"
    add("--given", metavar="TABLE", type=as_path("--given"), help=given)
    law = "without results: the law E + A params^-alpha + B images^-beta; E and the exponents are uncertain by 20 %%"
    add("--law", metavar="E,A,ALPHA,B,BETA", type=as_text("--law"), help=law)
    lengths = "lengths of branches in steps (default: 1/8, 1/4, 1/2 and all of the steps of the config's longest point)"
    add("--lengths", metavar="STEPS,...", type=as_text("--lengths"), help=lengths)
    seeds = "most seeds of one size, trained ones included (default 2)"
    add("--seeds", type=int, default=2, metavar="N", help=seeds)
    between = "standard deviation of log loss between trunks (default: from --given, else 0.01)"
    add("--between", type=float, metavar="SD", help=between)
    within = "standard deviation of log loss of branches about their trunk (default: from --given, else 0.005)"
    add("--within", type=float, metavar="SD", help=within)
    add("--out", metavar="FILE.py", type=as_path("--out"), help="write the config of the study that trains the points")


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Prints the design. With `--out`, also writes the config of the study that trains it. Returns the exit status."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs here
    from rfjax.files import write_whole
    from rfjax.laws.design import Information, Rules, best_log_grid, design, next_trunks
    from rfjax.plan import design_law, design_trunks
    from rfjax.study.study import POINT_ID, load_study

    _check(args)
    lengths = _lengths(args.lengths)
    study = load_study(args.config, overrides)
    sizes = design_trunks.sizes_of(study)
    noise = {"between": args.between, "within": args.within}
    if args.given is not None:
        so_far = design_law.of_results(args.given, sizes, **noise)
    else:
        so_far = design_law.of_typed_law(args.law, **noise)
    lengths = design_trunks.lengths_of(sizes, lengths)
    candidates, changes = design_trunks.candidates_of(sizes, lengths)
    _check_target(args.target, candidates, sizes, so_far.most_flops)
    problem, left = so_far.problem(candidates, sizes, args.target)
    information, rules = Information(problem, candidates), Rules(budget=args.budget, most_seeds=args.seeds)
    found = design(information, rules)
    changed = design_trunks.schedule_text(sizes)
    lines = [so_far.said, *so_far.lines, *([left] if left else []), *([changed] if changed else [])]
    lines.append(
        f"noise of log loss: {problem.between:.1%} between trunks, {problem.within:.1%} within; {so_far.noise_said}"
    )
    lines += ["", *_table(found, sizes), ""]
    count = f"{len(found.trunks)} new trunks with {sum(len(trunk.images) for trunk in found.trunks)} points in all"
    taken = (information.seeds_known[trunk.size] + found.trunks.count(trunk) for trunk in found.trunks)
    full = len({trunk.size for trunk in found.trunks}) == len(sizes) and min(taken) >= args.seeds
    rest = "; every size has its --seeds" if full else ""
    lines.append(f"{count}; {found.flops:.4g} of {args.budget:.4g} FLOPs are spent{rest}")
    lines.append(f"expected 95 % interval of the law's loss at {args.target:.3g} FLOPs: {_interval(found.half_width)}")
    lines.append(_beside(found, *best_log_grid(information, rules)))
    if args.given is not None:
        lines += _next(next_trunks(information, rules), sizes)
    largest = max(each.params for each in candidates), max(each.images[-1] for each in candidates)
    lines.append(
        "criterion: the variance of the law's log loss at the target's best size, with the law linearised in its "
        f"parameters, averaged over {len(problem.draws)} draws; sizes up to {largest[0]:.3g} parameters, "
        f"{largest[1]:.3g} images"
    )
    print("\n".join(lines))
    if args.out is not None:
        name = args.out.stem if POINT_ID.fullmatch(args.out.stem) else f"{study.name}-design"
        text = design_trunks.config_text(
            _command(args, overrides), name, found.trunks, sizes, changes, so_far.seeds or {}
        )
        write_whole({args.out: text})
        print(f"config: {args.out}; train it by rfjax study --config={args.out}")
    return 0


def _check(args) -> None:
    """Raises `ConfigError` for options that are out of range or contradict each other, before any work."""
    from rfjax.errors import ConfigError
    from rfjax.outputs import check_output
    from rfjax.plan.design_trunks import HEADER

    for option in ("budget", "target", "between", "within"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{option} is {value:g}; it must be positive and finite")
    if args.seeds < 2:
        raise ConfigError(
            f"--seeds is {args.seeds}; it must be at least 2: two seeds of one size show the scatter of trunks"
        )
    if (args.given is None) == (args.law is None):
        given = "neither --given nor --law is given" if args.law is None else "both --given and --law are given"
        raise ConfigError(f"{given}; give either --given TABLE (results so far) or --law E,A,ALPHA,B,BETA")
    if args.out is not None:
        if args.out.suffix != ".py":
            raise ConfigError(f"--out is {args.out}; a config's name ends in .py")
        header = HEADER.encode()
        reads = [path for path in (args.given, Path(args.config)) if path is not None and path.exists()]
        check_output(args.out, "--out", reads=reads, made_here=lambda path: path.read_bytes().startswith(header))


def _command(args, overrides) -> str:
    """Returns the options of the `rfjax design` command that made a design, as one line of shell text."""
    names = ("config", "budget", "target", "given", "law", "lengths", "seeds", "between", "within")
    given = {name: getattr(args, name) for name in names} | {f"config.{key}": value for key, value in overrides.items()}
    shown = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in given.items() if v is not None}
    return " ".join(shlex.quote(f"--{name}={value}".replace("\n", " ")) for name, value in shown.items())


def _lengths(text: str | None) -> list[int] | None:
    from rfjax.errors import ConfigError
    from rfjax.limits import COUNT_END

    if text is None:
        return None
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or sorted(set(lengths)) != lengths or lengths[0] < 1 or lengths[-1] > COUNT_END:
        raise ConfigError(
            f"--lengths is {text!r}; it must be whole numbers of steps that increase, separated by commas"
        )
    return lengths


def _check_target(target, candidates, sizes, most_so_far) -> None:
    from rfjax.errors import ConfigError

    longest = max(candidates, key=lambda each: sizes[each.size].per_image * each.images[-1])
    most = sizes[longest.size].per_image * longest.images[-1]
    if target <= max(most, most_so_far):
        run = (
            f"{sizes[longest.size].name} of {longest.images[-1]:.3g} images"
            if most >= most_so_far
            else "one of --given"
        )
        given = f"--target is {target:.3g} FLOPs, and a run takes up to {max(most, most_so_far):.3g} ({run})"
        raise ConfigError(f"{given}; give more, or leave large sizes or long --lengths out")


def _interval(half_width: float) -> str:
    return f"± {half_width:.1%}" if half_width < 1 else "more than ± 100 %: this budget does not decide it"


def _beside(found, grid, said) -> str:
    """Says, for comparison with the design, how well the best grid of sizes (evenly spaced in logarithm) within the
    same budget would predict the loss at the target."""
    if grid is None:
        return "no log grid (equal seeds and lengths for all sizes) within that budget and --seeds decides a law"
    text = f"the best log grid of at most that budget, {said}, from shared trunks: {_interval(grid.half_width)}"
    ratio = 1 - found.half_width / grid.half_width
    if ratio >= 0.005:
        return f"{text} (the design's is {ratio:.0%} narrower)"
    return f"{text} (as wide as the design's)" if ratio > -0.005 else f"{text} (narrower than the design's)"


def _next(chosen, sizes) -> list[str]:
    from rfjax.plan.design_trunks import steps_text

    if not chosen:
        return ["no single trunk, beside the results so far, decides the law at the target"]
    lines = ["what one more trunk would make of it (the interval with the results so far and this trunk alone):"]
    for trunk, half in chosen:
        named = f"{sizes[trunk.size].name}, steps {steps_text(trunk, sizes)}"
        lines.append(f"    {named}: {_interval(half)}, {trunk.flops:.3g} FLOPs")
    return lines


def _table(found, sizes) -> list[str]:
    from rfjax.console import format_table
    from rfjax.plan.design_trunks import steps_text

    rows = [("size", "params", "steps of branches", "new seeds", "FLOPs spent")]
    for trunk in dict.fromkeys(found.trunks):
        seeds = found.trunks.count(trunk)
        named = sizes[trunk.size].name, f"{trunk.params:,.0f}", steps_text(trunk, sizes)
        rows.append((*named, str(seeds), f"{seeds * trunk.flops:.4g}"))
    return format_table(rows)
