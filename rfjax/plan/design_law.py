"""Gathers what `rfjax design` knows before it chooses: the law, its uncertainty, the noise, and earlier trunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.laws.budgets import measure_cost, optimum
from rfjax.laws.design import Known, Problem, Trunk, seeds_of
from rfjax.laws.fit_source import read_source
from rfjax.laws.fitting import Fit, fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.trunks import ASSUMED_BETWEEN, ASSUMED_WITHIN, Scatter, roots_of, scatter, trunks_of
from rfjax.plan.design_trunks import Size

DRAWS = 33  # draws of the law, over which the variance is averaged
LAW_SPREAD = 0.2  # relative standard deviation of E and the exponents of a law from the command line
RESAMPLES = 200
SAME_SIZE = 0.01  # parameter counts that differ by less than this fraction are one size: tables print three digits
SAME_COST = 8.0  # factor by which a table's FLOPs per image may differ from those of the config's sizes
_SMALLEST_EXPONENT = 0.01  # below it more images or parameters do nothing, and the draw has no optimum


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """What a design starts from: a law with its uncertainty, the noise, and the trunks trained so far. The law was
    fitted to a study's results, or was given on the command line."""

    said: str  # the law and where it comes from, in words
    noise_said: str  # where the noise comes from, in words
    between: float  # standard deviation of log loss between trunks
    within: float  # standard deviation of log loss of branches about their trunk
    typed: tuple[float, ...] = ()  # E, A, alpha, B, beta from the command line; empty if fitted
    draws: Float[np.ndarray, "draws 5"] | None = None  # fitted, then resampled parameters; None if typed
    known: tuple[Known, ...] = ()
    seeds: Mapping[int, tuple[int, ...]] | None = None  # number of a size -> seeds that it was trained on
    most_flops: float = 0.0  # of the largest run so far
    lines: tuple[str, ...] = ()  # what the results leave out, and how they were read

    def problem(self, candidates: Sequence[Trunk], sizes: Sequence[Size], target: float) -> tuple[Problem, str]:
        """Makes the problem by which candidate trunks are judged. Returns (the problem, a note on omitted draws or "").

        Raises `ConfigError` if most draws of the law have no best size at `target` FLOPs.
        """
        rows = [(each.params, each.images[-1], sizes[each.size].per_image * each.images[-1]) for each in candidates]
        table = pd.DataFrame(rows, columns=["params", "images", "flops"])
        cost = measure_cost(table.assign(run=[f"{n}" for n in range(len(table))]))
        draws = self.draws
        if draws is None:
            draws = _doubted(self.typed, np.log(table["params"]).mean(), np.log(table["images"]).mean())
        with np.errstate(all="ignore"):
            best = np.log(np.stack(optimum(draws, target, cost)))
        sound = np.isfinite(best).all(axis=0) & (draws[:, [2, 4]] > _SMALLEST_EXPONENT).all(axis=1)
        if sound.mean() < 0.5:
            lack = f"most draws from the law's uncertainty have no best size at --target {target:.3g}"
            raise ConfigError(f"{self.said}: {lack}; give more results, or a law by --law")
        left = int((~sound).sum())
        said = (
            f"{left} of {len(draws)} draws from the law's uncertainty have no best size at the target and are left out"
            if left
            else ""
        )
        noise = {"between": self.between, "within": self.within}
        return Problem(draws=draws[sound], target=target, cost=cost, known=self.known, **noise), said


def of_typed_law(text: str, between: float | None, within: float | None) -> SoFar:
    """Reads a law from the text "E,A,ALPHA,B,BETA". `between` and `within` are standard deviations of the noise; None
    stands for an assumed value. Raises `ConfigError` for a text of another form."""
    try:
        typed = tuple(float(part) for part in text.split(","))
        if len(typed) != 5 or not all(0 <= number < float("inf") for number in typed):
            raise ValueError
    except ValueError:
        given = f"--law is {text!r}; it must be 5 numbers that are not negative, separated by commas"
        raise ConfigError(f"{given}: E,A,ALPHA,B,BETA") from None
    if not all(typed[1:]):
        raise ConfigError(f"--law is {text!r}; A, ALPHA, B and BETA must be positive")
    e, a, alpha, b, beta = typed
    said = f"law: {e:g} + {a:g} params^-{alpha:g} + {b:g} images^-{beta:g}, with {LAW_SPREAD:.0%} of doubt"
    return SoFar(said=said, typed=typed, **_noise(between, within, ASSUMED_BETWEEN, ASSUMED_WITHIN, "as assumed"))


def of_results(path: Path, sizes: Sequence[Size], between: float | None, within: float | None) -> SoFar:
    """Fits the parametric law to a study's results or to a table, and finds the trunks that were trained. `between` and
    `within` are standard deviations of the noise; None stands for an estimate from the results.

    Raises `ConfigError` if the results cannot be read or do not determine the law.
    """
    plain = {"rename": {}, "flops_per_param_image": None, "curves": False, "largest_losses": 0, "max_loss": None}
    source = read_source(path, **plain)
    rows = source.rows_for(PARAMETRIC)
    found = fit(rows, PARAMETRIC, resamples=RESAMPLES, held_out=False)
    if not found.identifiable:
        raise ConfigError(f"{path} has no parametric law to begin from: {found.reason}; give one by --law")
    scales = _scatter_of(found, rows)
    several = f"{scales.two_seeds} size{'s'[: scales.two_seeds != 1]} with several seeds"
    medians = [float(np.median(each)) for each in (scales.between, scales.within)]
    chosen = np.linspace(0, len(found.draws) - 1, DRAWS - 1).astype(int)
    known, seeds, note = _known(rows, sizes, path)
    unused = len(source.final) - len(rows)
    lines = [*source.left_out_lines(), *([f"{unused} runs are not at the best rate of their size"] if unused else [])]
    return SoFar(
        said=f"law: the parametric one of {len(rows)} runs of {len(known)} trunks in {path}",
        draws=np.concatenate([found.parameters[None], found.draws[chosen]]),
        known=known,
        seeds=seeds,
        most_flops=float(rows["flops"].max()) if "flops" in rows else 0.0,
        lines=(*lines, *note),
        **_noise(between, within, *medians, f"from {path} ({several})"),
    )


def _noise(between, within, found_between, found_within, said) -> dict:
    given = [name for name, value in (("--between", between), ("--within", within)) if value is not None]
    said = "as given" if len(given) == 2 else said + (f", but for {given[0]}" if given else "")
    return {"between": between or found_between, "within": within or found_within, "noise_said": said}


def _scatter_of(found: Fit, rows: pd.DataFrame) -> Scatter:
    """Returns a fit's estimate of the noise between and within trunks (`Scatter`).

    A fit of many trunks has no such estimate, because it resamples whole trunks. Then the noise is estimated here, from
    the fit's residuals.
    """
    if found.scatter is not None:
        return found.scatter
    trunks = dict(zip(rows["run"].astype(str), trunks_of(rows), strict=True))
    of_runs = np.unique([trunks[run] for run in found.runs], return_inverse=True)[1].ravel()
    jacobian = found.law.jacobian(found.parameters, found.log_x)
    return scatter(np.random.default_rng(0), jacobian, np.array(found.residuals), of_runs, found.log_x, RESAMPLES)


def _known(
    rows: pd.DataFrame, sizes: Sequence[Size], path: Path
) -> tuple[tuple[Known, ...], dict[int, tuple[int, ...]], list[str]]:
    """Matches the rows to the config's sizes. Returns (the trunks trained so far, {number of a size: the seeds that it
    was trained on}, notes).

    Raises `ConfigError` if FLOPs, parameters and images do not fit the sizes of the config.
    """
    trunks, known, seeds, unseeded, notes = trunks_of(rows), [], {}, {}, []
    for trunk in np.unique(trunks):
        of_trunk = rows[trunks == trunk]
        params = float(of_trunk["params"].iloc[0])
        if of_trunk["params"].max() > (1 + SAME_SIZE) * of_trunk["params"].min():
            of_both = f"{of_trunk['params'].min():g} and {of_trunk['params'].max():g} parameters"
            given = f"trunk {roots_of(rows)[int(np.argmax(trunks == trunk))]} of {path} has runs of {of_both}"
            raise ConfigError(f"{given}; a trunk has one size: give the trunks of each size names of their own")
        nearest = min(range(len(sizes)), key=lambda n: abs(np.log(sizes[n].params / params)))
        size = sizes[nearest]
        number = nearest if abs(size.params / params - 1) < SAME_SIZE else -1
        _check_units(of_trunk, size, path)
        known.append(Known(size=number, params=params, images=tuple(of_trunk["images"].astype(float))))
        if number >= 0:
            seed = _seed(of_trunk)
            if seed is None:
                unseeded.setdefault(number, []).append(known[-1])
            else:
                seeds.setdefault(number, set()).add(seed)
            notes += _other_settings(of_trunk, size)
    for number, nameless in unseeded.items():
        first = sizes[number].config.seed
        seeds.setdefault(number, set()).update(range(first, first + seeds_of(nameless, number)))
    if unseeded:
        count = sum(map(len, unseeded.values()))
        notes.append(f"{_count(count)} no column seed, and count as the first seeds of their size")
    if strange := sum(each.size < 0 for each in known):
        notes.append(f"{_count(strange)} a size that the config has not; they count for the law alone")
    of_sizes = {number: tuple(sorted(taken)) for number, taken in seeds.items()}
    return tuple(known), of_sizes, [f"note: {note}" for note in dict.fromkeys(notes)]


def _count(trunks: int) -> str:
    return f"{trunks} known trunk{'s'[: trunks != 1]} ha{'ve' if trunks != 1 else 's'}"


def _seed(of_trunk) -> int | None:
    """Returns the trunk's seed; None if the table has no column `seed`, or if the seed is not a whole number."""
    if "seed" not in of_trunk:
        return None
    seed = pd.to_numeric(of_trunk["seed"], errors="coerce").iloc[0]
    return int(seed) if np.isfinite(seed) and seed == int(seed) else None


def _check_units(of_trunk, size, path) -> None:
    """Raises `ConfigError` if a trunk's FLOPs per image are far from those of the config's nearest size."""
    if "flops" not in of_trunk:
        return
    row = of_trunk.iloc[0]
    expected = size.per_image / size.params * row["params"]
    found = row["flops"] / row["images"]
    if not 1 / SAME_COST < found / expected < SAME_COST:
        given = (
            f"{row['run']} of {path} has {found:.3g} FLOPs an image at {row['params']:.3g} parameters, and the config's"
        )
        said = f"{given} sizes take about {expected:.3g}"
        raise ConfigError(f"{said}; params, images or flops are in other units than single ones, or of another network")


def _other_settings(of_trunk, size) -> list[str]:
    """Lists the settings in which a trunk that was already trained differs from the config of its size."""
    config = size.config
    ours = {"learning_rate": config.train.learning_rate, "batch_size": config.train.batch_size}
    ours |= {"formulation": config.formulation, "train_corpus": config.data.label}
    notes = []
    for name, value in ours.items():
        theirs = of_trunk[name].iloc[0] if name in of_trunk else None
        if theirs is None or pd.isna(theirs):
            continue
        same = np.isclose(theirs, value, rtol=1e-3) if isinstance(value, (int, float)) else theirs == value
        if not same:
            notes.append(
                f"known trunks of {size.name} have {name} {theirs}, the config {value}: one law is taken for both"
            )
    return notes


def _doubted(typed, log_params, log_images):
    """Draws random laws around a law from the command line, to represent the law's uncertainty.

    E and the exponents vary by `LAW_SPREAD`. The coefficients change with the exponents, so that A params^-alpha and
    B images^-beta keep their values at the candidates' mean log size `log_params` and mean log length `log_images`.
    Returns an array [DRAWS, 5] with the columns E, log A, alpha, log B, beta; the first row is the law itself.
    """
    e, a, alpha, b, beta = typed
    factors = np.exp(LAW_SPREAD * np.random.default_rng(0).standard_normal((DRAWS, 3)))
    factors[0] = 1.0
    alphas, betas = alpha * factors[:, 1], beta * factors[:, 2]
    log_a, log_b = np.log(a) + (alphas - alpha) * log_params, np.log(b) + (betas - beta) * log_images
    return np.stack([e * factors[:, 0], log_a, alphas, log_b, betas], axis=1)
