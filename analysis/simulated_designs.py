"""Fits simulated studies of a design and of the best log grid of equal cost.

It measures how wide the intervals are, how often they cover the truth, and how wrong the laws are at the target.

    python analysis/simulated_designs.py --studies 200 --out analysis/results/simulated_designs.json

Each study has its own law, drawn from the uncertainty that the design assumed, and its own noise between trunks (1 %)
and within them (0.5 %). Design and grid have the same budget, share trunks, and predict at ten times the budget. The
fits are those of `rfjax fit`: laws are not linearised, and the noise is estimated from each study's own residuals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.design import Chosen, Information, Problem, Rules, Trunk, best_log_grid, design, runs_of_lengths
from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC

LAW = np.array([0.05, np.log(60.0), 0.3, np.log(900.0), 0.6])  # E, log A, alpha, log B, beta
DOUBT = 0.2  # of E and the exponents, relative
SIZES, STEPS, BATCH, SHARE = np.geomspace(1e5, 1e7, 7), np.array([250, 500, 1000, 2000, 4000]), 32, 0.2
BETWEEN, WITHIN = 0.01, 0.005
BUDGETS = {"large": 2.3e12, "small": 6e11}  # FLOPs
FURTHER = 10.0  # the target, in budgets


def candidates() -> list[Trunk]:
    """Returns the trunks of each size with each set of consecutive lengths of `STEPS` that a trunk may have
    (`runs_of_lengths`)."""
    found = []
    for size, params in enumerate(SIZES):
        for branches in runs_of_lengths(STEPS.tolist()):
            lengths = np.array(branches)
            decays = np.round(SHARE * lengths)
            flops = 6 * params * BATCH * ((lengths - decays).max() + decays.sum())
            images = tuple(lengths * float(BATCH))
            found.append(Trunk(size=size, params=float(params), images=images, flops=float(flops)))
    return found


def draw_laws(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 5"]:
    """Draws random laws around `LAW`: E and the exponents vary by `DOUBT`. Each power term keeps its value at the
    middle of the sizes and lengths, in logarithm."""
    rows = np.tile(LAW, (count, 1))
    rows[:, 0] *= np.exp(DOUBT * rng.standard_normal(count))
    for place, centre in ((2, np.log(SIZES).mean()), (4, np.log(STEPS * BATCH).mean())):
        exponents = LAW[place] * np.exp(DOUBT * rng.standard_normal(count))
        rows[:, place - 1] += (exponents - LAW[place]) * centre
        rows[:, place] = exponents
    return rows


def study(rng: np.random.Generator, law: Float[np.ndarray, " 5"], chosen: Chosen) -> pd.DataFrame:
    """Simulates one study of the trunks `chosen`. Returns a table with a row for each branch: the loss of the law with
    noise, of which one part is shared by the branches of a trunk."""
    rows = []
    for number, trunk in enumerate(chosen.trunks):
        shared = BETWEEN * rng.standard_normal()
        for images in trunk.images:
            noise = shared + WITHIN * rng.standard_normal()
            log_loss = PARAMETRIC.log_loss(law, np.log([[trunk.params, images]]))[0] + noise
            flops = 6 * trunk.params * images
            rows.append((f"{number}-{images:g}", f"t{number}", trunk.params, images, flops, np.exp(log_loss)))
    return pd.DataFrame(rows, columns=["run", "trunk", "params", "images", "flops", "loss"])


def measure(law: Float[np.ndarray, " 5"], table: pd.DataFrame, target: float, new_loss: float, resamples: int) -> dict:
    """Fits one study. Returns the half width of the interval at the target and the error there, both in log loss, and
    which intervals cover the truth; or the reason of a refusal."""
    found = fit(table, PARAMETRIC, resamples=resamples, held_out=False)
    if not found.identifiable:
        return {"refused": found.reason}
    best = dict(zip(("params", "images"), ([float(each)] for each in optimum(law, target, Cost())), strict=True))
    truth = float(np.exp(PARAMETRIC.log_loss(law, np.log([[*best["params"], *best["images"]]]))[0]))
    low, high = (float(end[0]) for end in found.interval(best, new_run=False))
    low_new, high_new = (float(end[0]) for end in found.interval(best, new_run=True))
    covered = {
        "law at the target": low <= truth <= high,
        "new run at the target": low_new <= truth * new_loss <= high_new,
    }
    for name, value in zip(("E", "alpha", "beta"), law[[0, 2, 4]], strict=True):
        covered[name] = bool(found.estimates[name].low <= value <= found.estimates[name].high)
    error = float(np.log(found.predict(best)[0] / truth))
    return {"half_width": float(np.log(high / low)) / 2, "error": error, "covered": covered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, metavar="N")
    parser.add_argument("--resamples", type=int, default=200, metavar="N", help="of each fit")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    content = {
        "studies": args.studies,
        "resamples": args.resamples,
        "between": BETWEEN,
        "within": WITHIN,
        "budgets": {},
    }
    for name, budget in BUDGETS.items():
        prior = np.concatenate([LAW[None], draw_laws(np.random.default_rng(0), 32)])
        target = FURTHER * budget
        problem = Problem(draws=prior, between=BETWEEN, within=WITHIN, target=target, cost=Cost())
        information, rules = Information(problem, candidates()), Rules(budget=budget)
        grid, said = best_log_grid(information, rules)
        designs, found = {"design": design(information, rules), "grid": grid}, {"design": [], "grid": []}
        for number, law in enumerate(draw_laws(np.random.default_rng(1), args.studies)):
            new_loss = float(np.exp(np.hypot(BETWEEN, WITHIN) * np.random.default_rng([2, number]).standard_normal()))
            for kind, chosen in designs.items():
                table = study(np.random.default_rng([3, number]), law, chosen)
                found[kind].append(measure(law, table, target, new_loss, args.resamples))
        content["budgets"][name] = {"flops": budget, "grid_is": said} | {
            kind: _summary(designs[kind], rows) for kind, rows in found.items()
        }
        both = [
            pair for pair in zip(found["design"], found["grid"], strict=True) if all("covered" in each for each in pair)
        ]
        ratios = [ours["half_width"] / theirs["half_width"] for ours, theirs in both]
        widths = np.array([[each["half_width"] for each in pair] for pair in both]).mean(axis=0)
        content["budgets"][name] |= {
            "both_fitted": len(both),
            "narrower_on_average": 1 - widths[0] / widths[1],
            "narrower_in_the_median_study": 1 - float(np.median(ratios)),
        }
        print(name, json.dumps(content["budgets"][name], indent=1), flush=True)
    if args.out:
        args.out.write_text(json.dumps(content, indent=1) + "\n")


def _summary(chosen: Chosen, rows: list[dict]) -> dict:
    fitted = [row for row in rows if "covered" in row]
    names = fitted[0]["covered"]
    coverage = {name: float(np.mean([row["covered"][name] for row in fitted])) for name in names}
    widths = [row["half_width"] for row in fitted]
    return {
        "trunks": len(chosen.trunks),
        "points": sum(len(trunk.images) for trunk in chosen.trunks),
        "flops": chosen.flops,
        "expected_half_width": chosen.half_width,
        "mean_half_width": float(np.mean(widths)),
        "median_half_width": float(np.median(widths)),
        "rms_error": float(np.sqrt(np.mean([row["error"] ** 2 for row in fitted]))),
        "refused": len(rows) - len(fitted),
        "coverage": coverage,
    }


if __name__ == "__main__":
    main()
