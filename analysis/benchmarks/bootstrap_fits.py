"""Times ten thousand bootstraps of the parametric law on 250 points, and compares a few minima with scipy's.

    python analysis/benchmarks/bootstrap_fits.py [--out record.json]

The points are drawn from a planted law (E = 1.8, A = 480, alpha = 0.35, B = 2100, beta = 0.37) over
sizes of 5e7 to 1e10 parameters and 1e9 to 1e12 images, with heavy-tailed noise of one per cent.
"""

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy import optimize, special

from rfjax.files import write_whole
from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.resampling import resampled_counts

POINTS, RESAMPLES, CHECKED = 250, 10_000, 40


def planted():
    rng = np.random.default_rng(0)
    params, images = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1e10, 1e12]), (POINTS, 2))).T
    loss = 1.8 + 480 * params**-0.35 + 2100 * images**-0.37
    loss *= np.exp(0.01 * rng.standard_t(3, POINTS))
    return pd.DataFrame({"run": [f"r{i:03d}" for i in range(POINTS)], "params": params, "images": images, "loss": loss})


def scipy_minimum(found, counts):
    """Huber's sum of one resample, minimised by BFGS from the point estimate and then polished."""
    log_n, log_d = found.log_x.T

    def objective(theta):
        logs = np.stack([np.full(POINTS, theta[0]), theta[1] - theta[2] * log_n, theta[3] - theta[4] * log_d])
        model = special.logsumexp(logs, axis=0)
        residuals, shares = model - found.log_loss, np.exp(logs - model)
        slope = counts * np.clip(residuals, -1e-3, 1e-3)
        gradient = [
            shares[0] @ slope,
            shares[1] @ slope,
            -(shares[1] * log_n) @ slope,
            shares[2] @ slope,
            -(shares[2] * log_d) @ slope,
        ]
        return 1e3 * (counts * special.huber(1e-3, residuals)).sum(), 1e3 * np.array(gradient)

    start = np.r_[np.log(found.parameters[0]), found.parameters[1:]]
    for _ in range(3):
        start = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 5000}).x
    return objective(start)[0] / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    table = planted()
    began = time.monotonic()
    found = fit(table, PARAMETRIC, resamples=RESAMPLES, held_out=False)
    seconds = time.monotonic() - began

    # The fit's generator drew the noise first; its own counts are found again the same way.
    rng = np.random.default_rng(found.seed)
    rng.chisquare(POINTS - 5, RESAMPLES)
    counts = resampled_counts(rng, PARAMETRIC, found.log_x - found.log_x.mean(axis=0), RESAMPLES)
    worst = 0.0
    for row in range(CHECKED):
        residuals = PARAMETRIC.log_loss(found.draws[row], found.log_x) - found.log_loss
        ours = (counts[row] * special.huber(1e-3, residuals)).sum()
        worst = max(worst, ours / scipy_minimum(found, counts[row]) - 1)
    record = {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "points": POINTS,
        "resamples": RESAMPLES,
        "seconds": round(seconds, 2),
        "warnings": list(found.warnings),
        "checked_against_scipy": CHECKED,
        "worst_relative_excess_over_scipy": worst,
        "stderr": {name: e.stderr for name, e in found.estimates.items()},
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    print(json.dumps(record, indent=1))
    if args.out:
        write_whole({args.out: json.dumps(record, indent=1) + "\n"})


if __name__ == "__main__":
    main()
