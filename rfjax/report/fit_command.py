"""`rfjax fit`: the laws of a table of runs on the console, and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

LAW_NAMES = ("power", "saturating", "parametric", "broken", "approach1", "approach2")
LOSS_NAMES = ("huber", "squares-log", "squares-raw", "l1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Nothing heavy is imported for `--help`."""
    add = parser.add_argument
    add(
        "table",
        metavar="TABLE",
        help="a CSV or Parquet file with a row per run (columns run, loss, and flops or params and images), or a "
        "results folder, or a study's folder that holds one",
    )
    add("--law", choices=LAW_NAMES, help="default: all that the columns allow")
    add(
        "--budget",
        type=float,
        action="append",
        default=[],
        metavar="FLOPS",
        help="divide this budget (parametric, approach1, approach2), or predict its loss; may be given several times",
    )
    add(
        "--fixed-images",
        type=float,
        metavar="N",
        help="images of every run in the fixed-steps design to compare with (default: the most that a run of the "
        "table has seen)",
    )
    add("--loss", choices=LOSS_NAMES, default="huber", help="what is minimised (default huber, of log residuals)")
    add("--delta", type=float, metavar="D", help="of Huber's loss (default 0.001)")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a score to correlate with the loss and to predict from it; may be given several times",
    )
    add(
        "--rename",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help='a column by another name, as "params=Model Size"',
    )
    add("--flops-per-param-image", type=float, metavar="K", help="images (or flops) from flops = K * params * images")
    add(
        "--drop-largest-losses",
        type=int,
        default=0,
        metavar="K",
        help="leave out rows whose loss is at least the K-th largest",
    )
    add("--max-loss", type=float, metavar="L", help="leave out rows with a larger loss")
    add("--profile", action="store_true", help="profile likelihoods of E and the exponents too")
    add(
        "--intervals",
        choices=("auto", "runs", "parametric"),
        default="auto",
        help="bootstrap over runs, or parametric (default: over runs where there are 8, and 5 more than parameters)",
    )
    add("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000)")
    add("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    add("--out", metavar="FILE.json", help="write every number of the fits here")


def run(args: argparse.Namespace) -> int:
    """Fit, compare by held-out error, divide budgets, relate scores to the loss; say so.

    Raises `ConfigError` for a table that is damaged, lacks a column or has a bad value, for a law
    asked for that the runs cannot decide, and for options that contradict each other.
    """
    from rfjax.errors import ConfigError
    from rfjax.files import write_whole
    from rfjax.results.plain import plain

    if args.resamples < 100:
        raise ConfigError(f"--resamples is {args.resamples}; 95 % intervals need at least 100")
    for option, value in [("--budget", budget) for budget in args.budget] + [
        ("--fixed-images", args.fixed_images),
        ("--max-loss", args.max_loss),
    ]:
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} is {value:g}; it must be positive and finite")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")
    if args.out and Path(args.out).is_dir():
        raise ConfigError(
            f"--out {args.out} is a folder; name the file to be written, as {Path(args.out) / 'fits.json'}"
        )
    source = _source(args)
    scores = {metric: _scores(source, metric) for metric in args.metric}
    lines, content = (_study if source.study and not args.law else _laws)(args, source)
    for metric, have in scores.items():
        said, content.setdefault("metrics", {})[metric] = _metric(args, source, have, metric)
        lines += said
    print("\n".join(([source.chosen_line()] if source.study and args.law != "approach1" else []) + lines))
    if args.out:
        write_whole(
            {
                Path(args.out): json.dumps(plain({"source": source.described, **content}), indent=1, allow_nan=False)
                + "\n"
            }
        )
        print(f"fits: {args.out}")
    return 0


def _source(args):
    from rfjax.laws.fit_source import read_source

    return read_source(
        Path(args.table),
        rename=_renames(args.rename),
        flops_per_param_image=args.flops_per_param_image,
        curves=args.law == "approach1",
        largest_losses=args.drop_largest_losses,
        max_loss=args.max_loss,
    )


def _renames(words):
    from rfjax.errors import ConfigError

    rename = {}
    for word in words:
        ours, sign, theirs = word.partition("=")
        if not (ours and sign and theirs):
            raise ConfigError(f'--rename {word!r} must be OURS=THEIRS, as "params=Model Size"')
        if ours in rename:
            raise ConfigError(f"--rename gives {ours!r} twice, from {rename[ours]!r} and from {theirs!r}; give it once")
        rename[ours] = theirs
    return rename


def _loss(args):
    from dataclasses import replace

    from rfjax.errors import ConfigError
    from rfjax.laws.misfits import LOSSES

    if args.delta is None:
        return LOSSES[args.loss]
    if args.loss != "huber":
        raise ConfigError(f"--delta is of Huber's loss; leave it out with --loss {args.loss}")
    return replace(LOSSES["huber"], delta=args.delta)


def _fit_options(args, source):
    from rfjax.laws.fitting import FitOptions

    return FitOptions(
        loss=_loss(args),
        resamples=args.resamples,
        seed=args.seed,
        intervals=args.intervals,
        excluded=source.excluded,
    )


def _study(args, source):
    """A study's own analysis: the frontier's law, the largest depth held out."""
    from rfjax.laws import study_fits
    from rfjax.report.terminal import analysis_lines, comparison_line, fit_lines

    found = study_fits.analyse(source.final, _fit_options(args, source), pairs=source.pairs)
    analysis = found.to_json()
    others = [fit for name, fit in analysis["fits"].items() if name != analysis["headline"]]
    lines = [*analysis_lines(analysis), *(line for fit in others for line in fit_lines(fit))]
    lines += [line for line in [comparison_line(analysis["comparison"])] if line]
    said, budgets = _budgets(args, source, found.fits, required=False)
    profiles = _profiles(args, found.fits)
    return lines + said + _profile_lines(profiles), {**analysis, "budgets": budgets, "profiles": profiles}


def _laws(args, source):
    """One law, or all that the columns allow."""
    from rfjax.errors import ConfigError
    from rfjax.laws.fitting import compare, fit
    from rfjax.laws.laws import LAWS
    from rfjax.laws.study_fits import examples_covariance
    from rfjax.report.terminal import comparison_line, fit_lines

    if args.law in ("approach1", "approach2"):
        return _approach(args, source)
    if args.law:
        chosen = [LAWS[args.law]]
    else:
        chosen = [
            law for law in LAWS.values() if law.name != "broken" and set(law.variables) <= set(source.final.columns)
        ]
        if not chosen:
            raise ConfigError(
                "no law can be fitted without flops, or params and images; the table has "
                f"{', '.join(source.final.columns)}"
            )
    if args.law == "saturating":  # the comparator, with its error, and what is left where the law refuses
        chosen.append(LAWS["power"])
    fits, pairs = {}, source.pairs
    for law in chosen:
        rows = source.of(law)
        covariance = examples_covariance(pairs, rows["run"].tolist())
        fits[law.name] = fit(rows, law, _fit_options(args, source), examples_covariance=covariance)
    if not any(found.identifiable for found in fits.values()):
        raise ConfigError("; ".join(f"the {name} law was not fitted: {found.reason}" for name, found in fits.items()))
    instead = "power" if args.law == "saturating" and not fits[args.law].identifiable else ""
    lines = [line for found in fits.values() for line in fit_lines(found.to_json())]
    if instead:
        lines.append(
            f"instead of the {args.law} law, which these runs cannot decide: the pure power law, without an offset"
        )
    comparison = compare({name: found for name, found in fits.items() if "flops" in found.law.variables})
    lines += [line for line in [comparison_line(comparison)] if line]
    said, budgets = _budgets(args, source, fits, required=True)
    profiles = _profiles(args, fits)
    content = {
        "fits": {name: found.to_json() for name, found in fits.items()},
        "comparison": comparison,
        "instead": instead,
        "budgets": budgets,
        "profiles": profiles,
    }
    return lines + said + _profile_lines(profiles), content


def _approach(args, source):
    from rfjax.laws.chinchilla_approaches import approach1, approach2
    from rfjax.laws.laws import PARAMETRIC
    from rfjax.report.terminal import approach_budget_line, approach_lines, excluded_lines
    from rfjax.results.plain import plain

    if args.law == "approach1":
        found = approach1(source.curves, resamples=args.resamples, seed=args.seed)
    else:
        found = approach2(source.of(PARAMETRIC), resamples=args.resamples, seed=args.seed)
    lines, budgets = approach_lines(found.to_json()) + excluded_lines([vars(one) for one in source.excluded]), []
    for budget in args.budget:
        params, images = found.at(budget)
        beyond = budget / max(one.flops for one in found.optima)
        budgets.append(
            {
                "budget_flops": budget,
                "approach": args.law,
                "params": vars(params),
                "images": vars(images),
                "beyond": beyond,
            }
        )
        lines.append(approach_budget_line(budgets[-1]))
    return lines, {"approaches": {args.law: plain(found.to_json())}, "budgets": budgets}


def _budgets(args, source, fits, *, required):
    """(lines, JSON): the parametric law divides each budget, or a law of compute predicts its loss."""
    from rfjax.laws.budgets import allocate
    from rfjax.report.terminal import allocation_lines, prediction_line

    lines, found = [], []
    for budget in args.budget:
        parametric = fits.get("parametric")
        if parametric is not None and (parametric.identifiable or (required and len(fits) == 1)):
            rows = source.of(parametric.law)
            fixed = args.fixed_images or float(rows["images"].max())
            found.append(allocate(parametric, budget, _cost(rows, args), fixed_images=fixed).to_json())
            lines += allocation_lines(found[-1])
        elif parametric is not None:
            lines.append(f"budget {budget:g}: not divided: {parametric.reason}")
        for name, one in fits.items():
            if "flops" not in one.law.variables or not one.identifiable:
                continue
            x = {"flops": [budget]}
            (low,), (high,) = one.interval(x, new_run=False)
            (new_low,), (new_high,) = one.interval(x, new_run=True)
            largest = float(source.of(one.law)["flops"].max())
            found.append(
                {
                    "budget_flops": budget,
                    "law": name,
                    "loss": float(one.predict(x)[0]),
                    "low": float(low),
                    "high": float(high),
                    "new_run_low": float(new_low),
                    "new_run_high": float(new_high),
                    "beyond": budget / largest,
                }
            )
            lines.append(prediction_line(found[-1]))
    return lines, found


def _cost(rows, args):
    from rfjax.laws.budgets import Cost, measure_cost

    if args.flops_per_param_image:
        return Cost(kappa=args.flops_per_param_image, eta=1.0, source="as given")
    return measure_cost(rows)


def _profiles(args, fits):
    from rfjax.laws.profile_likelihood import profile, profiled_parameters

    found = {}
    for name, one in fits.items() if args.profile else ():
        if one.identifiable:
            found[name] = {
                parameter: profile(one, parameter, seed=args.seed).to_json()
                for parameter in profiled_parameters(one.law)
            }
    return found


def _profile_lines(profiles):
    from rfjax.report.formats import parameter

    lines = []
    for law, found in profiles.items():
        for name, p in found.items():
            ends = zip(("lower", "upper"), ("low", "high"), p["at_bound"], strict=True)
            open_ends = "".join(
                f"; no {word} end: {p[end]:.4g} is not excluded either" for word, end, at_bound in ends if at_bound
            )
            lines.append(f"{law} law, {p['method']}: {name} = {parameter(name, p)}{open_ends}")
    return lines


def _scores(source, metric):
    """The rows that have this score, as the column `score`."""
    import pandas as pd

    from rfjax.errors import ConfigError
    from rfjax.laws.fit_points import check

    column = metric if metric in source.final else f"geneval_{metric}"
    if column not in source.final:
        raise ConfigError(
            f"the table has no column {metric!r} to set against the loss; it has "
            f"{', '.join(map(str, source.final.columns))}"
        )
    check(source.final, ("loss",))
    values = pd.to_numeric(source.final[column], errors="coerce")
    words = source.final.loc[values.isna() & source.final[column].notna(), ["run", column]]
    if len(words):
        run, word = words.iloc[0]
        raise ConfigError(
            f"column {column!r} of run {run} holds {word!r}, which is no number; write 0.31 for 0,31, and nothing "
            "where there is none"
        )
    return source.final.assign(score=values.astype(float))[values.notna()]


def _levels(have):
    """The loss at each level of t, from the columns `loss@t=T` that have all rows."""
    import pandas as pd

    from rfjax.errors import ConfigError

    found = {}
    for column in have:
        level = str(column).removeprefix("loss@t=")
        if level == str(column) or "_" in level:
            continue
        t = pd.to_numeric(level, errors="coerce")
        if not 0 <= t <= 1:
            raise ConfigError(
                f"column {column!r} is named as the loss at a level of t, and {level!r} is none (0 to 1); give it "
                "another name"
            )
        losses = pd.to_numeric(have[column], errors="coerce").to_numpy(float)
        if len(words := have.loc[pd.isna(losses) & have[column].notna(), column]):
            raise ConfigError(f"column {column!r} holds {words.iloc[0]!r}, which is no number")
        if not pd.isna(losses).any():
            found[float(t)] = losses
    return found


def _metric(args, source, have, metric):
    """(lines, JSON): one score against the loss; what needs a fraction is left out for others, and said."""
    from rfjax.laws.correlation import correlate
    from rfjax.laws.noise_levels import by_level
    from rfjax.laws.score_links import LINKS, fit_link, predict_largest
    from rfjax.report.terminal import correlation_line, prediction_lines

    loss, score = have["loss"].to_numpy(float), have["score"].to_numpy(float)
    options = {"resamples": args.resamples, "seed": args.seed}
    redrawn = source.redrawn(metric, have, **options)
    found = correlate(loss, score, redrawn=redrawn, **options).to_json()
    without = sorted(set(source.final["run"].astype(str)) - set(have["run"].astype(str)))
    content = {"without_score": without, "correlation": found, "no_fraction": ""}
    lines = [correlation_line(metric, found)]
    if len(score) and not ((score >= 0) & (score <= 1)).all():
        content["no_fraction"] = (
            f"{metric} goes from {score.min():g} to {score.max():g} and is no fraction: without arcsine √score, the "
            "links that predict the "
            "largest run's score, and the levels of t, which need one from 0 to 1 (divide percentages by 100)"
        )
        return [*lines, f"    {content['no_fraction']}"], content
    size = next((name for name in ("params", "flops", "images") if name in have and have[name].notna().all()), "loss")
    predicted = [
        vars(one) for one in predict_largest(loss, score, have[size].to_numpy(float), have["run"].to_numpy(), **options)
    ]
    content |= {
        "largest_predicted": predicted,
        "size": size,
        "links": [fit_link(loss, score, link, resamples=2).to_json() for link in LINKS.values()],
        "levels": [one.to_json() for one in by_level(_levels(have), score, redrawn=redrawn, **options)],
    }
    return lines + prediction_lines(metric, predicted), content
