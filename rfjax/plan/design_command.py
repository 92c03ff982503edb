"""`rfjax design`: which trunks and branches to train next, so that a law predicts best at a larger budget."""

from __future__ import annotations

import argparse
import os
import pprint
from collections.abc import Mapping
from dataclasses import dataclass

from rfjax.inputs.paths import as_path, as_text

DRAWS = 33  # of the law, over which the variance is averaged
LAW_SPREAD = 0.2  # relative deviation of E and the exponents of a law that is typed
MOST_BRANCHES = 4
HEADER = "# Written by rfjax design; "
_SMALLEST_EXPONENT = 0.01  # a draw below it says that more images or parameters do nothing: it has no optimum


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    sizes = "a study whose points give the sizes to choose from, and the rest of each run"
    add("--config", required=True, metavar="FILE.py|NAME", type=as_text("--config"), help=sizes)
    add("--budget", required=True, type=float, metavar="FLOPS", help="training FLOPs that the points may take in all")
    target = "compute-optimal training FLOPs at which the loss is to be predicted"
    add("--target", required=True, type=float, metavar="FLOPS", help=target)
    given = "results so far: a study's folder, or a table with params, images, flops and loss (and trunk)"
    add("--given", metavar="TABLE", type=as_path("--given"), help=given)
    law = "without results: loss = E + A params^-alpha + B images^-beta, with 20 %% of doubt in E and the exponents"
    add("--law", metavar="E,A,ALPHA,B,BETA", type=as_text("--law"), help=law)
    lengths = "lengths of branches in steps (default: an eighth, a quarter, half and all of the config's most steps)"
    add("--lengths", metavar="STEPS,...", type=as_text("--lengths"), help=lengths)
    add("--seeds", type=int, default=2, metavar="N", help="the most seeds of one size (default 2)")
    between = "deviation of log loss between trunks (default: from --given where it has branches, else 0.01)"
    add("--between", type=float, metavar="SD", help=between)
    within = "deviation of log loss of branches about their trunk (default: likewise, else 0.005)"
    add("--within", type=float, metavar="SD", help=within)
    add("--out", metavar="FILE.py", type=as_path("--out"), help="write the config of the study that trains the points")


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Prints the design, and writes the config that trains it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs here
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.laws.design import Information, best_log_grid, design, next_trunks
    from rfjax.outputs import check_output
    from rfjax.study.study import load_study

    _check_numbers(args)
    if args.out is not None:
        if args.out.suffix != ".py":
            raise ConfigError(f"--out is {args.out}; a config's name ends in .py")
        check_output(args.out, "--out", made_here=lambda path: path.read_text().startswith(HEADER))
    study = load_study(args.config, overrides)
    law = _law(args)
    sizes = _sizes(study)
    candidates, configs = _candidates(sizes, _lengths(args, sizes))
    largest = max(each.params for each in candidates), max(each.images[-1] for each in candidates)
    problem = law.problem(candidates, sizes, args)
    most = max([*(size.per_image * images for size, images in _ends(sizes, candidates)), law.most])
    if args.target <= most:
        given = f"--target is {args.target:.3g} FLOPs, and a run takes up to {most:.3g}"
        raise ConfigError(f"{given}; give more, or leave large sizes or long --lengths out")
    information = Information(problem, candidates)
    found = design(information, args.budget, most_seeds=args.seeds)
    grid, said = best_log_grid(information, args.budget)
    noise = f"{problem.between:.1%} between trunks, {problem.within:.1%} within"
    lines = [law.said, f"noise of log loss: {noise}; {law.of_noise}", "", *_table(found, sizes), ""]
    count = f"{len(found.trunks)} trunks with {sum(len(trunk.images) for trunk in found.trunks)} points in all"
    lines.append(f"{count}; {found.flops:.4g} of {args.budget:.4g} FLOPs are spent")
    at = f"the law's loss at {args.target:.3g} FLOPs"
    lines.append(f"expected 95 % interval of {at}: ± {found.half_width:.1%}")
    if grid is not None:
        lines.append(
            f"the best log grid of at most that cost, {said} from shared trunks: ± {grid.half_width:.1%} "
            f"(the design's is {1 - found.half_width / grid.half_width:.0%} narrower)"
        )
    if args.given is not None:
        lines.append("what one more trunk would make of it, beside the results so far:")
        for trunk, half in next_trunks(information, args.budget):
            named = f"{sizes[trunk.size].name}, steps {_steps(trunk, sizes)}"
            lines.append(f"    {named}: ± {half:.1%}, {trunk.flops:.3g} FLOPs")
    lines.append(
        "criterion: the variance of log loss at the target's best size, of the law made linear in its parameters, mean "
        f"over {len(problem.draws)} draws; sizes up to {largest[0]:.3g} parameters, {largest[1]:.3g} images"
    )
    print("\n".join(lines))
    if args.out is not None:
        write_whole({args.out: _config_text(args, study, found, sizes, configs)})
        print(f"config: {args.out}; train it by rfjax study --config={args.out}")
    return 0


@dataclass(frozen=True)
class _Size:
    name: str
    config: object  # of the study's first point of this size
    params: float
    per_image: float  # training FLOPs


@dataclass(frozen=True, kw_only=True)
class _Law:
    """Where the law, the noise and what is known come from. `draws` is None where they need the sizes' centre."""

    said: str
    of_noise: str
    draws: object
    between: float
    within: float
    known: tuple = ()
    most: float = 0.0  # FLOPs of the largest run so far
    typed: tuple[float, ...] = ()

    def problem(self, candidates, sizes, args):
        import numpy as np
        import pandas as pd

        from rfjax.errors import ConfigError
        from rfjax.laws.budgets import measure_cost, optimum
        from rfjax.laws.design import Problem

        rows = [(size.params, images, size.per_image * images) for size, images in _ends(sizes, candidates)]
        table = pd.DataFrame(rows, columns=["params", "images", "flops"])
        cost = measure_cost(table.assign(run=[f"{n}" for n in range(len(table))]))
        draws = self.draws
        if draws is None:
            draws = _doubted(self.typed, np.log(table["params"]).mean(), np.log(table["images"]).mean())
        with np.errstate(all="ignore"):
            best = np.stack(optimum(draws, args.target, cost))
        sound = np.isfinite(np.log(best)).all(axis=0) & (draws[:, [2, 4]] > _SMALLEST_EXPONENT).all(axis=1)
        if sound.mean() < 0.5:
            lack = f"most of its draws have no best size at --target {args.target:.3g}"
            raise ConfigError(f"{self.said}: {lack}; give more results, or a law by --law")
        return Problem(
            draws=draws[sound],
            between=self.between,
            within=self.within,
            target=args.target,
            cost=cost,
            known=self.known,
        )


def _check_numbers(args) -> None:
    from rfjax.errors import ConfigError

    for option in ("budget", "target", "between", "within"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{option} is {value:g}; it must be positive and finite")
    if args.seeds < 2:
        raise ConfigError(f"--seeds is {args.seeds}; it must be at least 2: only two seeds tell trunks from the law")
    if (args.given is None) == (args.law is None):
        raise ConfigError("give one of --given TABLE (results so far) and --law E,A,ALPHA,B,BETA")


def _numbers(text: str, option: str, count: int | None = None) -> list[float]:
    from rfjax.errors import ConfigError

    try:
        numbers = [float(part) for part in text.split(",")]
        if not all(0 <= number < float("inf") for number in numbers) or (count and len(numbers) != count):
            raise ValueError
    except ValueError:
        wanted = f"{count} numbers" if count else "numbers"
        raise ConfigError(f"{option} is {text!r}; it takes {wanted} that are not negative, between commas") from None
    return numbers


def _law(args) -> _Law:
    from rfjax.errors import ConfigError
    from rfjax.laws.trunks import ASSUMED_BETWEEN, ASSUMED_WITHIN

    assumed = {"between": args.between or ASSUMED_BETWEEN, "within": args.within or ASSUMED_WITHIN}
    of_noise = "as given" if args.between and args.within else "as assumed, but for what is given"
    if not args.between and not args.within:
        of_noise = "as assumed"
    if args.law is not None:
        typed = _numbers(args.law, "--law", 5)
        if not all(number > 0 for number in typed[1:]):
            raise ConfigError(f"--law is {args.law!r}; A, ALPHA, B and BETA must be positive")
        e, a, alpha, b, beta = typed
        said = f"law: {e:g} + {a:g} params^-{alpha:g} + {b:g} images^-{beta:g}, with {LAW_SPREAD:.0%} of doubt"
        return _Law(said=said, of_noise=of_noise, draws=None, typed=tuple(typed), **assumed)
    return _law_of_results(args, assumed, of_noise)


def _law_of_results(args, assumed, of_noise) -> _Law:
    import numpy as np

    from rfjax.errors import ConfigError
    from rfjax.laws.fit_source import read_source
    from rfjax.laws.fitting import fit
    from rfjax.laws.laws import PARAMETRIC
    from rfjax.laws.trunks import trunks_of

    plain = {"rename": {}, "flops_per_param_image": None, "curves": False, "largest_losses": 0, "max_loss": None}
    source = read_source(args.given, **plain)
    rows = source.rows_for(PARAMETRIC)
    found = fit(rows, PARAMETRIC, resamples=200, held_out=False)
    if not found.identifiable:
        raise ConfigError(f"{args.given} has no parametric law to begin from: {found.reason}; give one by --law")
    if found.scatter is not None:
        of_noise = f"from {args.given} where none is given ({found.scatter.two_seeds} sizes with several seeds)"
        of_runs = {name: float(np.median(getattr(found.scatter, name))) for name in ("between", "within")}
        assumed = {name: getattr(args, name) or value for name, value in of_runs.items()}
    chosen = np.linspace(0, len(found.draws) - 1, DRAWS - 1).astype(int)
    numbers, trunks = rows[["params", "images"]].to_numpy(float), trunks_of(rows)
    known = tuple(tuple(numbers[trunks == trunk].T) for trunk in np.unique(trunks))
    return _Law(
        said=f"law: the parametric one of {len(rows)} runs of {len(known)} trunks in {args.given}",
        of_noise=of_noise,
        draws=np.concatenate([found.parameters[None], found.draws[chosen]]),
        known=known,
        most=float(rows["flops"].max()) if "flops" in rows else 0.0,
        **assumed,
    )


def _doubted(typed, log_params, log_images):
    """Draws of a law that is typed: E and the exponents in doubt, each term as it is amid the sizes and lengths."""
    import numpy as np

    e, a, alpha, b, beta = typed
    factors = np.exp(LAW_SPREAD * np.random.default_rng(0).standard_normal((DRAWS, 3)))
    factors[0] = 1.0
    alphas, betas = alpha * factors[:, 1], beta * factors[:, 2]
    log_a, log_b = np.log(a) + (alphas - alpha) * log_params, np.log(b) + (betas - beta) * log_images
    return np.stack([e * factors[:, 0], log_a, alphas, log_b, betas], axis=1)


def _sizes(study) -> list[_Size]:
    """The distinct sizes of a study's points, the smallest first."""
    from rfjax.study.study import size_of

    found = {}
    for point in study.points:
        size, model = size_of(point.config), point.config.model
        named = f"depth{model.depth}-width{model.width}"
        made = _Size(named, point.config, float(size.params), float(size.flops_per_image))
        found.setdefault((made.params, made.per_image), made)
    sizes = [found[key] for key in sorted(found)]
    if len({size.name for size in sizes}) < len(sizes):  # they differ in something else too
        sizes = [_Size(f"size{n}", size.config, size.params, size.per_image) for n, size in enumerate(sizes)]
    return sizes


def _lengths(args, sizes) -> list[int]:
    from rfjax.errors import ConfigError

    if args.lengths is None:
        most = max(size.config.train.steps for size in sizes)
        return sorted({max(most // part, 1) for part in (8, 4, 2, 1)})
    lengths = _numbers(args.lengths, "--lengths")
    whole = [int(length) for length in lengths]
    if whole != lengths or sorted(set(whole)) != whole or whole[0] < 1:
        raise ConfigError(f"--lengths is {args.lengths!r}; it takes numbers of steps that increase")
    return whole


def _candidates(sizes, lengths):
    """(the trunks that could be trained, by (size, branches' images) the config of each)."""
    from rfjax import config as schema
    from rfjax.errors import ConfigError
    from rfjax.laws.design import Trunk
    from rfjax.training.branches import steps_taken

    found, configs = [], {}
    for number, size in enumerate(sizes):
        batch = size.config.train.batch_size
        for last in range(len(lengths)):
            for first in range(max(last - MOST_BRANCHES + 1, 0), last + 1):
                branches = tuple(lengths[first : last + 1])
                changes = {"train.steps": branches[-1], "train.schedule": "wsd", "train.decay_shape": "1-sqrt"}
                changes["train.branches"] = branches if len(branches) > 1 else ()
                try:
                    config = schema.apply_overrides(size.config, changes)
                except ConfigError as error:
                    raise ConfigError(f"{size.name} with --lengths={','.join(map(str, lengths))}: {error}") from None
                images = tuple(float(length * batch) for length in branches)
                flops = float(size.per_image * batch * steps_taken(config.train))
                found.append(Trunk(size=number, params=size.params, images=images, flops=flops))
                configs[number, images] = changes
    return found, configs


def _ends(sizes, candidates):
    """Each candidate's size with the images of its longest branch."""
    return [(sizes[each.size], each.images[-1]) for each in candidates]


def _steps(trunk, sizes) -> str:
    batch = sizes[trunk.size].config.train.batch_size
    return " ".join(f"{images / batch:.0f}" for images in trunk.images)


def _table(found, sizes) -> list[str]:
    from rfjax.study.study import format_table

    rows = [("size", "params", "steps of branches", "seeds", "FLOPs spent")]
    for trunk in dict.fromkeys(found.trunks):
        seeds = found.trunks.count(trunk)
        named = sizes[trunk.size].name, f"{trunk.params:,.0f}", _steps(trunk, sizes)
        rows.append((*named, str(seeds), f"{seeds * trunk.flops:.4g}"))
    return format_table(rows)


def _config_text(args, study, found, sizes, configs) -> str:
    """A study's config file that trains the design."""
    from rfjax import config as schema

    base = schema.to_dict(sizes[0].config) | {"name": f"{study.name}-design"}
    shared = schema.flatten(sizes[0].config)
    points, seeds = {}, {}
    for trunk in found.trunks:
        size = sizes[trunk.size]
        seed = seeds[trunk.size] = seeds.get(trunk.size, size.config.seed - 1) + 1
        flat = schema.flatten(size.config)
        own = {key: value for key, value in flat.items() if value != shared[key] and key != "name"}
        points[f"{size.name}-seed{seed}"] = own | configs[trunk.size, trunk.images] | {"seed": seed}
    what = f"--config={args.config} --budget={args.budget:g} --target={args.target:g}"
    shown = {name: pprint.pformat(value, width=110, sort_dicts=False) for name, value in (("b", base), ("p", points))}
    return (
        f"{HEADER}{what}\n"
        f"from ml_collections import ConfigDict\n\nBASE = {shown['b']}\n\nPOINTS = {shown['p']}\n\n\n"
        "def get_config():\n    return ConfigDict(BASE)\n\n\ndef points():\n    return POINTS\n"
    )
