"""Tests claims about scores: loss against GenEval, guidance against size, sampling steps against size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from rfjax.evaluation.sampler_name import SamplerName
from rfjax.laws.claim_evidence import Evidence
from rfjax.laws.correlation import correlate, redrawn_scores
from rfjax.laws.fitting import Estimate
from rfjax.laws.step_efficiency import step_counts
from rfjax.laws.trunks import are_shared, trunk_means, trunks_of
from rfjax.laws.verdicts import AGREES, CONTRADICTS, UNDECIDED, Judgement, untested
from rfjax.results.columns import PROTOCOLS, score_column
from rfjax.results.results_folder import rows_where

P = 0.05  # a correlation with a larger p-value agrees with no claim
WEAK = -0.5  # a rank correlation above this is too weak to rank runs
SCORE_COLUMNS = (score_column(), *(f"{name}_overall" for name in PROTOCOLS), "geneval")
FEWEST_SIZES, FEWEST_SCALES = 3, 3
GENEVALS = (("geneval", "geneval"), ("ranking", "ranking_geneval"))  # evaluations and metrics with guidance scales


def loss_ranks_geneval(evidence: Evidence) -> Judgement:
    """Judges whether a lower loss goes with a higher GenEval, by Spearman's correlation over runs. The branches of a
    trunk count once, with their mean loss and their mean score."""
    points = evidence.points
    column = next((name for name in SCORE_COLUMNS if name in points and points[name].notna().any()), None)
    if column is None:
        return untested(f"a column of GenEval: {', '.join(SCORE_COLUMNS[:2])} or geneval")
    have = points[points[column].notna()]
    without = sorted(set(points["run"].astype(str)) - set(have["run"].astype(str)))
    notes = [f"without a score: {', '.join(without)}"] if without else []
    loss, score = have["loss"].to_numpy(float), have[column].to_numpy(float)
    redrawn = None
    options = {"resamples": evidence.options.resamples, "seed": evidence.options.seed}
    if evidence.results is not None and column == score_column():  # the table has its results by prompt
        redrawn = redrawn_scores(evidence.results.prompts, have, evidence.settings, *options.values()).get("overall")
    trunks = trunks_of(have)
    if are_shared(trunks):
        loss, score = trunk_means(loss, trunks), trunk_means(score, trunks)
        redrawn = None if redrawn is None else trunk_means(redrawn.T, trunks).T
        notes += ["branches of one trunk are one point, by their mean"]
    found = correlate(loss, score, redrawn=redrawn, **options)
    if not found.coefficients:
        return Judgement(verdict=UNDECIDED, decide=f"more runs with a score: {found.reason}", notes=tuple(notes))
    rank = next(c for c in found.coefficients if c.name == "Spearman")
    common = {
        "quantity": f"Spearman's correlation of loss and {column}",
        "found": Estimate(value=rank.value, low=rank.low, high=rank.high),
        "method": f"{found.n} runs; {found.interval_method}",
        "notes": (f"p = {rank.p:.2g}, {found.p_method}", *notes),
    }
    if rank.low is not None and rank.high < 0 and rank.p < P:
        return Judgement(verdict=AGREES, **common)
    if rank.low is not None and rank.low > WEAK:
        return Judgement(verdict=CONTRADICTS, **common)
    return Judgement(verdict=UNDECIDED, decide="more independent runs with a score", **common)


def guidance_falls(evidence: Evidence) -> Judgement:
    """Judges whether the best guidance scale falls with size, from the scores of one sampler at several scales."""
    needs = (
        f"a results folder with GenEval of {FEWEST_SIZES} sizes at {FEWEST_SCALES} guidance scales each "
        "(`rfjax eval` with several scales, or the controls of a ranking)"
    )
    scores = None if evidence.results is None else _by_guidance(evidence)
    if scores is None:
        return untested(needs)
    best = scores.idxmax(axis=1).to_numpy(float)
    params = evidence.points.set_index("run").loc[scores.index, "params"].to_numpy(float)
    ends = (scores.columns.min(), scores.columns.max())
    edge = [str(run) for run, scale in zip(scores.index, best, strict=True) if scale in ends]
    said = ", ".join(f"{n:.3g}: {scale:g}" for n, scale in sorted(zip(params, best, strict=True)))
    notes = [f"best scale by size: {said}"]
    notes += [f"at the edge of the scales tried, so no optimum: {', '.join(edge)}"] if edge else []
    common = {"quantity": "Kendall's correlation of size and best guidance scale", "notes": tuple(notes)}
    found = correlate(np.log(params), best, resamples=evidence.options.resamples, seed=evidence.options.seed)
    if not found.coefficients:
        return Judgement(
            verdict=UNDECIDED, decide=f"more scales, so that the sizes' best scales differ: {found.reason}", **common
        )
    rank = next(c for c in found.coefficients if c.name == "Kendall")
    common |= {"found": Estimate(value=rank.value, low=rank.low, high=rank.high)}
    common |= {"method": f"{found.n} runs, p = {rank.p:.2g} ({found.p_method})"}
    if rank.p < P and not edge:
        return Judgement(verdict=AGREES if rank.value < 0 else CONTRADICTS, **common)
    decide = (
        "scales beyond those tried, so that each size has its best inside" if edge else "more sizes, with more prompts"
    )
    return Judgement(verdict=UNDECIDED, decide=decide, **common)


def _by_guidance(evidence):
    """Returns overall GenEval as a frame [run, guidance scale], for the sampler with the most pairs of run and scale. A
    run that lacks one of the scales is dropped. Returns None if there are too few sizes or scales.
    """
    long = evidence.results.long
    sizes = evidence.points.set_index("run")["params"]
    found = []
    for evaluation, metric in GENEVALS:
        rows = rows_where(long, evaluation=evaluation, metric=metric, item="overall", final=1)
        rows = rows[(rows["weights"] == evidence.settings.weights) & rows["run"].isin(sizes.index)]
        names = rows["sampler"].map(SamplerName.parse)
        rows = rows.assign(
            guidance=[name.guidance_scale if name and not name.guide else None for name in names],
            without=[name and replace(name, guidance_scale=0.0).format() for name in names],
        )
        for _, group in rows[rows["guidance"].notna()].groupby(["corpus", "without", "evaluation_seed"]):
            scores = group.pivot_table(index="run", columns="guidance", values="value").dropna()
            if scores.shape[1] >= FEWEST_SCALES and sizes[scores.index].nunique() >= FEWEST_SIZES:
                found.append(scores)
    return max(found, key=lambda scores: scores.size, default=None)


def larger_need_fewer_steps(evidence: Evidence) -> Judgement:
    """Judges whether fewer sampling steps cost the largest size less of its GenEval score than they cost the smallest
    size. The sizes are compared at one number of steps: the number at which the most sizes were scored, or the smallest
    of several such numbers."""
    needs = "a results folder with GenEval of two sizes at several counts of steps (`rfjax eval RUN --sampling-steps`)"
    if evidence.results is None:
        return untested(needs)
    options = {"weights": evidence.settings.weights, "seed": evidence.options.seed}
    counts = step_counts(evidence.results.long, evidence.results.prompts, **options)
    rows = pd.DataFrame([vars(one) for one in counts])
    if rows.empty:
        return untested(needs)
    rows = rows[rows["drop"].notna() & rows["params"].notna() & (rows["steps"] < rows["reference"])]
    by_sampler = rows.groupby(["settings", "steps", "reference"])["params"].nunique()
    by_sampler = by_sampler[by_sampler == by_sampler.max()] if len(by_sampler) else by_sampler
    if not len(by_sampler) or by_sampler.max() < 2:
        return untested(needs)
    settings, steps, reference = min(by_sampler.index, key=lambda key: key[1])
    same = rows[(rows["settings"] == settings) & (rows["steps"] == steps) & (rows["reference"] == reference)]
    same = same.sort_values(["params", "run"], kind="stable")
    small, large = same.iloc[0], same.iloc[-1]
    difference = Estimate(value=float(small["drop"] - large["drop"]))
    ends = {
        row["run"]: f"{row['drop']:.1%} [{row['drop_low']:.1%}, {row['drop_high']:.1%}]" for _, row in same.iterrows()
    }
    common = {
        "quantity": f"drop of the smallest size minus that of the largest, at {steps} of {reference} steps",
        "found": difference,
        "method": "paired by prompt; intervals over prompts",
        "notes": ("drops by size: " + ", ".join(f"{run} {said}" for run, said in ends.items()),),
    }
    if large["drop_high"] < small["drop_low"]:
        return Judgement(verdict=AGREES, **common)
    if large["drop_low"] > small["drop_high"]:
        return Judgement(verdict=CONTRADICTS, **common)
    return Judgement(verdict=UNDECIDED, decide="more prompts, fewer steps, or sizes further apart", **common)
