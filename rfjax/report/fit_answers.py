"""Computes the answer of `rfjax fit` to a table of runs: lines for the console, and the same as JSON."""

from __future__ import annotations

import argparse

import pandas as pd

from rfjax.errors import ConfigError
from rfjax.laws import study_fits
from rfjax.laws.budgets import Cost, allocate, measure_cost
from rfjax.laws.chinchilla_approaches import approach1, approach2
from rfjax.laws.comparison import compare
from rfjax.laws.correlation import correlate
from rfjax.laws.fit_points import check, listed_columns, rename_hint
from rfjax.laws.fit_source import read_renames, read_source
from rfjax.laws.fitting import fit
from rfjax.laws.laws import LAWS, PARAMETRIC
from rfjax.laws.misfits import LOSSES, huber
from rfjax.laws.noise_levels import by_level
from rfjax.laws.optimal_frontier import derive
from rfjax.laws.profile_likelihood import profile, profiled_parameters
from rfjax.laws.score_links import predict_by_links
from rfjax.laws.trunks import trunks_of
from rfjax.report import fit_facts
from rfjax.report.crowds import names
from rfjax.results.columns import loss_levels, score_column
from rfjax.results.plain import plain

APPROACHES = ("approach1", "approach2")


def answer(args: argparse.Namespace) -> tuple[list[str], dict]:
    """Answers the arguments of `rfjax fit`. Returns (lines for the console, JSON).

    Raises `ConfigError` if the table cannot be read, if a law that was asked for cannot be fitted, and if a score that
    was asked for has no column or its column holds text.
    """
    source = read_source(
        args.table,
        rename=read_renames(args.rename),
        flops_per_param_image=args.flops_per_param_image,
        curves=args.law == "approach1",
        largest_losses=args.drop_largest_losses,
        max_loss=args.max_loss,
    )
    scores = {metric: _scores(source, metric) for metric in args.metric}
    facts, content = _approach(args, source) if args.law in APPROACHES else _laws(args, source)
    for metric, have in scores.items():
        said, content.setdefault("metrics", {})[metric] = _metric(args, source, have, metric)
        facts += said
    chosen = [[source.chosen_line()]] if source.study and args.law != "approach1" else []
    chosen = [[*sum(chosen, []), *source.left_out_lines()]] if chosen or source.left_out_lines() else []
    excluded = {"excluded": source.excluded} if source.excluded else {}
    return fit_facts.as_lines(chosen + facts), plain({"source": source.description | excluded, **content})


def _loss(args):
    if args.delta is None:
        return None if args.loss is None else LOSSES[args.loss]
    if args.loss not in (None, "huber"):
        raise ConfigError(f"--delta is a parameter of Huber's loss; leave it out with --loss {args.loss}")
    return huber(args.delta)


def _laws(args, source):
    """Fits the laws. Returns (facts, JSON) of the fits, their prediction errors, and their answers to each budget."""
    options = {
        "loss": _loss(args),
        "resamples": args.resamples,
        "seed": args.seed,
        "intervals": args.intervals,
        "excluded": source.excluded,
    }
    study = source.study and args.law is None
    facts, content, fits = (_study_fits if study else _table_fits)(args, source, options)
    facts += fit_facts.comparison_facts(content["comparison"])
    facts += fit_facts.optimal_frontier_facts(content) if "parametric" in fits else []
    budgets = [found for budget in args.budget for found in _budget(args, source, fits, budget, required=not study)]
    profiles = {
        name: {p: plain(profile(found, p, seed=args.seed)) for p in profiled_parameters(found.law)}
        for name, found in fits.items()
        if args.profile and found.identifiable and found.scatter is None
    }
    facts += [fact for fact, _ in budgets] + fit_facts.profile_facts(profiles)
    return facts, content | {"budgets": [found for _, found in budgets if found], "profiles": profiles}


def _study_fits(args, source, options):
    """Analyses a study: the law of its frontier, and the largest depth held out. Returns (facts, JSON, fits)."""
    found = study_fits.analyse(source.final, pairs=source.pairs, **options)
    analysis = found.to_json()
    others = [fit_facts.fit_fact(fitted) for name, fitted in analysis["fits"].items() if name != analysis["headline"]]
    return [fit_facts.headline_fact(analysis), *fit_facts.held_out_facts(analysis), *others], analysis, found.fits


def _table_fits(args, source, options):
    """Fits one law, or all laws that the columns allow. Returns (facts, JSON, fits)."""
    columns = set(source.final.columns)
    allowed = [law for law in LAWS.values() if law.name != "broken" and set(law.variables) <= columns]
    chosen = allowed if args.law is None else [LAWS[args.law]]
    if not chosen:
        lack = "no law can be fitted without flops, or params and images"
        hint = rename_hint([name for name in ("flops", "params", "images") if name not in columns], source.final)
        raise ConfigError(f"{lack}; the table has {listed_columns(source.final)}{hint}")
    if args.law == "saturating":  # to compare with, and to fall back on
        chosen.append(LAWS["power"])
    fits, rules = {}, {}
    for law in chosen:
        found = source.choose_runs(law)
        covariance = study_fits.examples_covariance(source.pairs, found.rows["run"].tolist())
        fits[law.name] = fit(found.rows, law, examples_covariance=covariance, **options)
        rules |= {law.name: found.rule} if found.rule else {}
    if not any(found.identifiable for found in fits.values()):
        raise ConfigError("; ".join(f"the {name} law was not fitted: {found.reason}" for name, found in fits.items()))
    content = {
        "fits": {name: found.to_json() for name, found in fits.items()},
        "which_runs": rules,
        "comparison": compare(fits),
        "instead": "power" if args.law == "saturating" and not fits[args.law].identifiable else "",
    }
    if "parametric" in fits:
        rows, given = source.rows_for(PARAMETRIC), args.flops_per_param_image
        content["optimal_frontier"], content["optimal_frontier_reason"] = derive(fits["parametric"], rows, given)
        content = plain(content)
    facts = [fit_facts.fit_fact(found, rules.get(name, "")) for name, found in content["fits"].items()]
    if content["instead"]:
        remedy = "the pure power law, without an offset"
        facts.append([f"instead of the {args.law} law, which these runs cannot decide: {remedy}"])
    return facts, content, fits


def _approach(args, source):
    """Runs approach 1 or 2. Returns (facts, JSON) of the fitted line and of the size that it gives for each budget."""
    if args.law == "approach1":
        found = approach1(source.curves, resamples=args.resamples, seed=args.seed)
    else:
        found = approach2(source.rows_for(PARAMETRIC), resamples=args.resamples, seed=args.seed)
    budgets = []
    for budget in args.budget:
        divided = dict(zip(("params", "images"), found.at(budget), strict=True))
        beyond = budget / max(best.flops for best in found.optima)
        budgets.append(plain({"budget_flops": budget, "approach": args.law, **divided, "beyond": beyond}))
    fact = fit_facts.approach_fact(found.to_json()) + fit_facts.exclusion_sentences(plain(source.excluded))
    return [fact, *map(fit_facts.approach_budget_fact, budgets)], {"approaches": {args.law: found}, "budgets": budgets}


def _budget(args, source, fits, budget, *, required):
    """Returns (fact, JSON) pairs for a budget: how the parametric law divides it, and the loss that other laws predict.

    The JSON is None if the parametric law cannot divide the budget. If there is no other law, `ConfigError` is
    raised instead, provided that an answer is `required`.
    """
    found, parametric = [], fits.get("parametric")
    if parametric is not None and (parametric.identifiable or (required and len(fits) == 1)):
        rows = source.rows_for(parametric.law)
        fixed = float(rows["images"].max()) if args.fixed_images is None else args.fixed_images
        given = args.flops_per_param_image
        cost = Cost(kappa=given, source="as given") if given else measure_cost(rows)
        allocation = allocate(parametric, budget, cost, fixed_images=fixed).to_json()
        found.append((fit_facts.allocation_fact(allocation), allocation))
    elif parametric is not None:
        found.append(([f"budget {budget:g}: not divided: {parametric.reason}"], None))
    for name, fitted in fits.items():
        if "flops" in fitted.law.variables and fitted.identifiable:
            ends = {end: float(value) for end, (value,) in fitted.bands({"flops": [budget]}).items()}
            beyond = budget / float(source.rows_for(fitted.law)["flops"].max())
            predicted = {"budget_flops": budget, "law": name, **ends, "beyond": beyond}
            found.append((fit_facts.budget_fact(predicted), predicted))
    return found


def _scores(source, metric):
    """Returns the rows that have the score `metric`, with this score in the column `score`."""
    column = metric if metric in source.final else score_column(metric)
    if column not in source.final:
        have = ", ".join(map(str, source.final.columns))
        raise ConfigError(f"the table has no column {metric!r} to set against the loss; it has {have}")
    check(source.final, ("loss",))
    values = pd.to_numeric(source.final[column], errors="coerce")
    words = source.final.loc[values.isna() & source.final[column].notna(), ["run", column]]
    if len(words):
        run, word = words.iloc[0]
        remedy = "write 0.31 for 0,31, and nothing where there is no score"
        raise ConfigError(f"column {column!r} of run {run} holds {word!r}, which is no number; {remedy}")
    return source.final.assign(score=values.astype(float))[values.notna()]


def _levels(have):
    """Reads the columns `loss@t=T` of a table, with the loss at one level of t. Returns {t: losses}, for columns
    without an empty cell."""
    found = {}
    for level, column in loss_levels(map(str, have)).items():
        t = pd.to_numeric(level, errors="coerce")
        if not 0 <= t <= 1:
            named = f"column {column!r} is named as the loss at a level of t"
            raise ConfigError(f"{named}, and {level!r} is none (0 to 1); give it another name")
        losses = pd.to_numeric(have[column], errors="coerce").to_numpy(float)
        if len(words := have.loc[pd.isna(losses) & have[column].notna(), column]):
            raise ConfigError(
                f"column {column!r} holds {words.iloc[0]!r}, which is no number; give a column of numbers"
            )
        if not pd.isna(losses).any():
            found[float(t)] = losses
    return found


def _metric(args, source, have, metric):
    """Relates one score to the loss. Returns (facts, JSON). A score outside 0 to 1 gets only correlations, and a
    note."""
    loss, score = have["loss"].to_numpy(float), have["score"].to_numpy(float)
    options = {"resamples": args.resamples, "seed": args.seed}
    redrawn = source.redraw_score(metric, have, **options)
    found = plain(correlate(loss, score, redrawn=redrawn, trunks=trunks_of(have), **options))
    without = sorted(set(source.final["run"].astype(str)) - set(have["run"].astype(str)))
    content = {"without_score": without, "correlation": found, "no_fraction": ""}
    fact = fit_facts.correlation_fact(metric, found)
    if without:
        fact = [*fact, f"without a score, and left out: {names(without, 'the JSON of --out')}"]
    if len(score) and not ((score >= 0) & (score <= 1)).all():
        content["no_fraction"] = (
            f"{metric} goes from {score.min():g} to {score.max():g} and is no fraction: without arcsine √score, the "
            "links that predict the largest run's score, and the levels of t, because these need a score from 0 to 1 "
            "(divide percentages by 100)"
        )
        return [[*fact, content["no_fraction"]]], content
    size = next((name for name in ("params", "flops", "images") if name in have and have[name].notna().all()), "loss")
    trunks, runs = trunks_of(have), have["run"].to_numpy()
    flops = have["flops"].to_numpy(float) if "flops" in have and have["flops"].notna().all() else None
    linked = predict_by_links(loss, score, have[size].to_numpy(float), runs, flops=flops, trunks=trunks, **options)
    levels = plain(by_level(_levels(have), score, redrawn=redrawn, trunks=trunks, **options))
    content |= {"largest_predicted": linked["largest_predicted"], "size": size, "links": linked["links"]}
    content["levels"] = levels
    return [fact, *fit_facts.largest_score_facts(metric, linked["largest_predicted"])], content
