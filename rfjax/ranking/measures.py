"""Reads the measures of every variant under every control from the results table.

A variant is what differs between runs: their formulation, their backbone, or both. A control is one combination of
corpus, weights, sampler and evaluation seed. If variants were trained with several seeds, the training seed is part of
the control, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.evaluation.control_measures import ALIGNMENT, DISTANCE, EVALUATION, TRUTH
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.laws.left_out import left_out_by_role
from rfjax.laws.study_fits import counted, of_trained
from rfjax.results.results_folder import Results, rows_where

FACTS = ("formulation", "backbone")  # the columns that variants may be named by


@dataclass(frozen=True, order=True)
class Control:
    """The conditions under which variants are compared."""

    corpus: str
    weights: str
    sampler: str
    evaluation_seed: int
    seed: int | None  # of training; None unless some variant has several runs on one corpus

    @property
    def steps(self) -> int | None:
        return self._sampler.steps if self._sampler else None

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None if guidance is by a weaker run, or if the sampler's name cannot be parsed."""
        return self._sampler.guidance_scale if self._sampler and not self._sampler.guide else None

    @property
    def _sampler(self):
        return SamplerName.parse(self.sampler)

    @property
    def name(self) -> str:
        seeds = {"evaluation seed": self.evaluation_seed or None, "seed": self.seed}
        return f"{self.corpus}, {self.weights}, {self.sampler}" + "".join(
            f", {what} {n}" for what, n in seeds.items() if n is not None
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """Alignment (GenEval, more is better) and distance (Fréchet, less is better) of each variant under each control;
    nan for a variant that diverged.

    `present` is true if there is a record, or the run diverged. The `ends` are the ends of 95 % intervals. The last
    axis of the replicates counts resamples of prompts, which are the same for all variants under a control.
    """

    variants: tuple[str, ...]
    families: tuple[str, ...]  # one for each variant
    named_by: str  # the column, or columns, that variants are named by
    controls: tuple[Control, ...]
    present: np.ndarray  # [controls, variants]
    alignment: Float[np.ndarray, "controls variants"]
    distance: Float[np.ndarray, "controls variants"]
    alignment_ends: Float[np.ndarray, "controls variants 2"]
    distance_ends: Float[np.ndarray, "controls variants 2"]
    alignment_replicates: Float[np.ndarray, "controls variants resamples"]
    distance_replicates: Float[np.ndarray, "controls variants resamples"]
    truth: Float[np.ndarray, " controls"]  # the distance of ground-truth images
    images: tuple[int, ...]  # for each control, the number of images of a variant
    diverged: tuple[str, ...]
    notes: tuple[str, ...]


def family_of(variant: str) -> str:
    """Returns a formulation's family: `rf/lognorm` for `rf/lognorm(0.00,1.00)`. Any other name is its own family."""
    return variant.split("(")[0]


def measures_of(results: Results) -> Measures | None:
    """Reads the measures in the table; returns None if there are fewer than two variants, or no run was measured.

    A run that diverged and has no record counts as a variant, too. Its measures are nan under all controls of its
    corpus (and of its training seed, where controls have one). If a run was measured at several steps, the last is
    used.

    Raises `ConfigError` if records differ in their numbers of resamples, if a record lacks a measure, and if two runs
    under one control differ in features, reference images or prompts.
    """
    rows = rows_where(results.long, evaluation=EVALUATION, item="overall")
    long, notes = _last_steps(counted(of_trained(rows)))
    of_role = counted(results.runs)
    ranked = of_role[of_role["run"].isin(long["run"])]
    lost = of_role[(of_role["state"] == "diverged") & ~of_role["run"].isin(long["run"])]
    if ranked.empty:
        return None
    runs = pd.concat([ranked, lost[lost["train_corpus"].isin(long["corpus"])]])
    idle = of_role[~of_role["run"].isin(runs["run"])]["run"].tolist()
    notes += [str(each).removeprefix("left out: ") for each in left_out_by_role(results.runs)]
    notes += [f"not ranked, for want of a record: {', '.join(idle)}"] if idle else []
    names, named_by = _name_variants(runs)
    if len(set(names.values())) < 2:
        return None
    repeated = pd.DataFrame({"variant": runs["run"].map(names), "corpus": runs["train_corpus"]}).duplicated().any()
    seeds = dict.fromkeys(runs["run"])  # None, unless a variant has several runs, which their seeds distinguish
    if repeated:
        seeds = dict(zip(runs["run"], runs["seed"].fillna(0).astype(int).tolist(), strict=True))
    rows = _pair_measures(long, names, seeds, results.replicates)
    controls = tuple(sorted({_control(row) for row in rows}))
    variants = tuple(sorted(set(names.values()), key=_by_family_and_numbers))
    lengths = {len(values) for row in rows for values in row["replicates"].values()}
    if len(lengths) > 1:
        counts = " and ".join(map(str, sorted(lengths)))
        remedy = "evaluate the runs again with one version of rfjax"
        raise ConfigError(f"the ranking records have {counts} resamples of prompts; {remedy}")
    shape, resamples = (len(controls), len(variants)), lengths.pop()

    present, truth = np.zeros(shape, bool), np.full(len(controls), np.nan)
    values = {metric: np.full(shape, np.nan) for metric in (ALIGNMENT, DISTANCE)}
    ends = {metric: np.full((*shape, 2), np.nan) for metric in values}
    replicates = {metric: np.full((*shape, resamples), np.nan) for metric in values}
    images = [0] * len(controls)
    for row in rows:
        at = controls.index(_control(row)), variants.index(row["variant"])
        present[at] = True
        images[at[0]] = row["n"]
        for metric in values:
            values[metric][at] = row["value"][metric]
            ends[metric][at] = row["ends"][metric]
            replicates[metric][at] = row["replicates"][metric]
    marks = rows_where(results.long, evaluation=EVALUATION, item=TRUTH)
    for place, control in enumerate(controls):
        own = rows_where(marks, corpus=control.corpus, sampler=control.sampler, weights=control.weights)
        truth[place] = own["value"].median() if len(own) else np.nan
    for run in runs[runs["run"].isin(lost["run"])].to_dict("records"):
        for place, control in enumerate(controls):
            if control.corpus == run["train_corpus"] and control.seed == seeds[run["run"]]:
                present[place, variants.index(names[run["run"]])] = True
    diverged = tuple(v for i, v in enumerate(variants) if (present[:, i] & ~np.isfinite(values[DISTANCE][:, i])).any())
    return Measures(
        variants=variants,
        families=tuple(map(family_of, variants)),
        named_by=named_by,
        controls=controls,
        present=present,
        alignment=values[ALIGNMENT],
        distance=values[DISTANCE],
        alignment_ends=ends[ALIGNMENT],
        distance_ends=ends[DISTANCE],
        alignment_replicates=replicates[ALIGNMENT],
        distance_replicates=replicates[DISTANCE],
        truth=truth,
        images=tuple(images),
        diverged=diverged,
        notes=tuple(notes),
    )


def _last_steps(long):
    """Returns the rows of each run's last measured step, and a note for each run measured at several steps."""
    last = long.groupby("run")["step"].transform("max")
    early = long[long["step"] < last]
    notes = [f"{run}: measured at several steps; the last counts" for run in early["run"].unique()]
    return long[long["step"] == last], notes


def _name_variants(runs: pd.DataFrame) -> tuple[dict[str, str], str]:
    """Returns {run: variant}, and what the variants are named by.

    Variants are named by the columns of `FACTS` that differ between runs. If two runs of one corpus and seed would then
    have the same name, all variants are named by their points (or by their runs, if points repeat), without the corpus.
    """
    differing = [name for name in FACTS if runs[name].nunique() > 1] or list(FACTS[:1])
    names = runs[differing].agg(" ".join, axis=1)
    if not pd.concat([names, runs[["train_corpus", "seed"]]], axis=1).duplicated().any():
        return dict(zip(runs["run"], names, strict=True)), " and ".join(differing)
    names = runs["point"].where(runs["point"] != "", runs["run"])
    names = names if names.is_unique else runs["run"]
    # In a study of several corpora a point's name is CORPUS-VARIANT.
    names = [name.removeprefix(f"{corpus}-") for name, corpus in zip(names, runs["train_corpus"], strict=True)]
    return dict(zip(runs["run"], names, strict=True)), "point"


def _pair_measures(
    long: pd.DataFrame, names: dict[str, str], seeds: dict[str, int | None], replicates: pd.DataFrame
) -> list[dict]:
    """Returns a row for each record: its control, its variant, both measures, their intervals' ends and replicates.

    Raises `ConfigError` if a record lacks a measure or its replicates, and if two runs under one control differ in
    prompts, features or reference images.
    """
    key = ["run", "step", "weights", "corpus", "sampler", "evaluation_seed"]
    kept = {tuple(row[name] for name in [*key, "metric"]): row for row in replicates.to_dict("records")}
    rows, alike, records = [], {}, {}
    for row in long[[*key, "metric", "n", "value", "low", "high"]].to_dict("records"):
        records.setdefault(tuple(row[name] for name in key), {})[row["metric"]] = row
    for place, own in records.items():
        found = {metric: kept.get((*place, metric)) for metric in (ALIGNMENT, DISTANCE)}
        if set(own) != set(found) or None in found.values():
            raise ConfigError(
                f"the ranking record of run {place[0]!r} under {place[2]}, {place[4]} lacks a measure or its "
                "replicates; delete it and evaluate the run again"
            )
        row = dict(zip(key, place, strict=True)) | {
            "variant": names[place[0]],
            "seed": seeds[place[0]],
            "n": int(own[DISTANCE]["n"]),
            "value": {metric: own[metric]["value"] for metric in own},
            "ends": {metric: (own[metric]["low"], own[metric]["high"]) for metric in own},
            "replicates": {metric: np.array(found[metric]["replicates"].split(), float) for metric in found},
        }
        facts = tuple(found[DISTANCE][name] for name in ("feature_map", "reference_sha1", "prompts_sha1"))
        first, theirs = alike.setdefault(_control(row), (place[0], facts))
        if theirs != facts:
            raise ConfigError(
                f"runs {first!r} and {place[0]!r} cannot be ranked together under {_control(row).name}: they differ "
                "in features, reference images or prompts; evaluate them again with one version of rfjax and one corpus"
            )
        rows.append(row)
    return rows


def _control(row) -> Control:
    return Control(row["corpus"], row["weights"], row["sampler"], int(row["evaluation_seed"]), row["seed"])


def _by_family_and_numbers(name: str) -> tuple:
    """Returns a key that sorts by family, then by the numbers in the name: -1.00 before 0.00 before 1.00."""
    numbers = re.findall(r"-?\d+\.?\d*", name.partition("(")[2])
    return family_of(name), [float(number) for number in numbers], name


def places_of_steps(controls: Sequence[Control], steps: int | None, guidance: float | None) -> list[int]:
    """Returns the indices of the controls with `steps` sampling steps and this guidance scale; None means any."""
    return [
        place
        for place, control in enumerate(controls)
        if (steps is None or control.steps == steps) and (guidance is None or control.guidance == guidance)
    ]
