"""Compares laws by their held-out errors over the same runs.

Laws may be fitted to different runs of a table: a law of compute to the frontier, the parametric law to all. For each
run that all laws were fitted to, each law is refitted without it and predicts it. The law with the least error is
preferred.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rfjax.laws.fitting import Fit

LEAST_SHARED = 3  # with fewer runs, one of them decides which law is preferred
RESAMPLES = 1000


def compare(fits: Mapping[str, Fit]) -> dict:
    """Returns each law's errors of leave-one-out and leave-largest-out, and the law that predicts best.

    Where runs are branches of shared trunks, whole trunks are left out. For each law, `leave_one_out_rms` is over the
    runs that it was fitted to, and `shared_runs_rms` over the runs that all compared laws were fitted to. `preferred`
    is the law with the smallest `shared_runs_rms`; if fewer than two laws can be compared, or if the laws share fewer
    than `LEAST_SHARED` runs, `preferred` is "" and `reason` says why. `preferred_share` is the share of resamples of
    these runs in which the same law has the smallest `shared_runs_rms`; it is None if runs share trunks, because such
    runs are not independent. A law that cannot predict each of its runs is not compared, and its own `reason` says why.
    """
    errors, laws = {}, {}
    for name, fitted in fits.items():
        left_out = fitted.trunk_out or fitted.left_out
        rms = left_out.rms if left_out else None
        laws[name] = {
            "leave_one_out_rms": rms,
            "leave_largest_out": fitted.largest_out.relative_error if fitted.largest_out else None,
            "shared_runs_rms": None,
            "reason": "" if rms is not None else _why_not(fitted),
        }
        if rms is not None:
            errors[name] = dict(zip(left_out.runs, left_out.relative_errors, strict=True))
    folds = [fitted.left_out.folds for fitted in fits.values() if fitted.left_out and fitted.left_out.folds]
    shared = [run for run in next(iter(errors.values()), ()) if all(run in others for others in errors.values())]
    found = {"laws": laws, "preferred": "", "preferred_share": None, "shared_runs": shared, "reason": ""}
    found |= {"folds": folds[0]} if folds else {}
    if len(errors) < 2:
        count = "no law can" if not errors else f"only the {next(iter(errors))} law can"
        return found | {"shared_runs": [], "reason": f"{count} predict each run from the others"}
    if len(shared) < LEAST_SHARED:
        return found | {"reason": f"the laws have {len(shared)} runs in common; at least {LEAST_SHARED} are needed"}
    squares = np.array([[of_law[run] ** 2 for run in shared] for of_law in errors.values()])
    for name, square in zip(errors, squares, strict=True):
        laws[name]["shared_runs_rms"] = float(np.sqrt(square.mean()))
    best = int(squares.mean(axis=1).argmin())
    if any(fitted.trunk_out for fitted in fits.values()):
        return found | {"preferred": list(errors)[best]}
    drawn = np.random.default_rng(0).integers(len(shared), size=(RESAMPLES, len(shared)))
    resampled = squares[:, drawn].mean(axis=2)
    share = float((resampled.argmin(axis=0) == best).mean())
    return found | {"preferred": list(errors)[best], "preferred_share": share}


def _why_not(fitted):
    """Returns the reason why a law has no leave-one-out error."""
    if not fitted.identifiable:
        return f"not fitted: {fitted.reason}"
    left_out = fitted.trunk_out or fitted.left_out
    return left_out.reason if left_out else "its runs were not left out in turn"
