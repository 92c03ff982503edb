"""Fits the parametric law to the points read from Chinchilla's figure 4, and compares it with the published fit.

    python analysis/chinchilla.py chinchilla_svg_extracted_data.csv [--resamples 10000] [--published]

The file is that of Besiroglu et al. 2024 (arXiv 2404.10102): columns "Model Size", "Training FLOP"
and "loss", 245 rows. As there, D = C / 6N and the five largest losses are dropped. `--published`
repeats their bootstrap: 4,000 resamples of rows drawn by NumPy's legacy generator with seed 42,
each minimised by BFGS from Hoffmann et al.'s parameters.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, special

from rfjax.files import write_whole
from rfjax.laws.budgets import Cost, exponent_draws
from rfjax.laws.fit_points import exclude
from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.misfits import HUBER, LOSSES

PUBLISHED = {  # value, standard error
    "A": (482.01, 124.5),
    "B": (2085.43, 1293.3),
    "E": (1.8169, 0.0257),
    "alpha": (0.3478, 0.0154),
    "beta": (0.3659, 0.0206),
    "a": (0.513, 0.020),
}
HUBER_OPTIMUM = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347311, "beta": 0.367172}
# Hoffmann et al.'s values, as in the source of their paper: log A, log B, log E, alpha, beta.
HOFFMANN = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])


def read(path):
    """Returns (the table of 240 runs, the dropped runs)."""
    raw = pd.read_csv(path)
    table = pd.DataFrame(
        {
            "run": [f"row{i + 2}" for i in range(len(raw))],
            "params": raw["Model Size"],
            "flops": raw["Training FLOP"],
            "images": raw["Training FLOP"] / (6 * raw["Model Size"]),
            "loss": raw["loss"],
        }
    )
    return exclude(table, largest_losses=5)


def published_bootstrap(table, resamples):
    """Refits resampled rows of the table by the estimator of Besiroglu et al. Returns parameters [resamples, 5], as
    (log A, log B, log E, alpha, beta)."""
    log_n, log_d, log_loss = (np.log(table[name].to_numpy(float)) for name in ("params", "images", "loss"))

    def objective(theta, n, d, y):
        logs = np.stack([theta[0] - theta[3] * n, theta[1] - theta[4] * d, np.full(len(n), theta[2])])
        model = special.logsumexp(logs, axis=0)
        shares, residuals = np.exp(logs - model), model - y
        slope = np.clip(residuals, -1e-3, 1e-3)
        gradient = [
            shares[0] @ slope,
            shares[1] @ slope,
            shares[2] @ slope,
            -(shares[0] * n) @ slope,
            -(shares[1] * d) @ slope,
        ]
        return special.huber(1e-3, residuals).sum(), np.array(gradient)

    np.random.seed(42)
    chosen = [np.random.choice(len(log_loss), len(log_loss), replace=True) for _ in range(resamples)]
    return np.array(
        [
            optimize.minimize(objective, HOFFMANN, args=(log_n[i], log_d[i], log_loss[i]), jac=True, method="BFGS").x
            for i in chosen
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", action="store_true", help="also run the published bootstrap")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    table, dropped = read(args.csv)
    print(f"{len(table)} points; dropped {', '.join(one.run for one in dropped)} ({dropped[0].rule})")
    record = {"points": len(table)}
    for name, loss, reference in (("Huber(1e-3)", HUBER, HUBER_OPTIMUM), ("absolute values", LOSSES["l1"], PUBLISHED)):
        found = fit(table, PARAMETRIC, loss=loss, resamples=100, held_out=False)
        print(f"\n{name}: objective {found.objective:.10g}, {found.starts_agreeing} of {found.starts} starts agree")
        for parameter, estimate in found.estimates.items():
            expected = reference[parameter]
            expected = expected[0] if isinstance(expected, tuple) else expected
            print(
                f"  {parameter:6s} {estimate.value:12.6f}  reference {expected:12.6f}  "
                f"{estimate.value / expected - 1:+.4%}"
            )
        record[name] = {p: e.value for p, e in found.estimates.items()} | {"objective": found.objective}

    began = time.monotonic()
    found = fit(table, PARAMETRIC, resamples=args.resamples, seed=args.seed, held_out=False, excluded=dropped)
    draws = {p: e.stderr for p, e in found.estimates.items()}
    a = exponent_draws(found, Cost())
    draws["a"] = float(a.std(ddof=1))
    print(f"\nbootstrap over runs, {args.resamples:,} resamples, seed {args.seed}: {time.monotonic() - began:.1f} s")
    for parameter, (_, stderr) in PUBLISHED.items():
        print(
            f"  {parameter:6s} {draws[parameter]:12.5f}  published {stderr:10.5f}  {draws[parameter] / stderr - 1:+.2%}"
        )
    record["stderr"] = draws
    point = found.estimates["beta"].value / (found.estimates["alpha"].value + found.estimates["beta"].value)
    print(f"a = {point:.3f} ± {draws['a']:.3f}")
    if args.published:
        began = time.monotonic()
        theirs = published_bootstrap(table, 4000)
        natural = np.column_stack([np.exp(theirs[:, :3]), theirs[:, 3:], theirs[:, 4] / (theirs[:, 3] + theirs[:, 4])])
        spread = dict(zip(("A", "B", "E", "alpha", "beta", "a"), natural.std(axis=0, ddof=1), strict=True))
        print(f"\npublished estimator, start and seed, 4,000 resamples: {time.monotonic() - began:.1f} s")
        for parameter, (_, stderr) in PUBLISHED.items():
            print(
                f"  {parameter:6s} {spread[parameter]:12.5f}  published {stderr:10.5f}  "
                f"{spread[parameter] / stderr - 1:+.2%}"
            )
        record["stderr_published_estimator"] = {name: float(value) for name, value in spread.items()}
    if args.out:
        write_whole({args.out: json.dumps(record, indent=1) + "\n"})


if __name__ == "__main__":
    main()
