"""The ranking in the Stable Diffusion 3 paper: its table 1.

Esser et al. 2024 (arXiv 2403.03206). Formulations are named as in `rfjax.flow.formulation.PAPER`.
"""

from __future__ import annotations

SOURCE = "Esser et al. 2024 (arXiv 2403.03206), table 1"
# formulation -> average rank over (all 24 controls, those of 5 steps, those of 50 steps). The table has the two best
# formulations of each family in each column. All ranks for 50 steps are multiples of a quarter, so that column averages
# four controls. These have the same guidance scale: presumably 5.0, at which all numbers of steps were sampled.
AVERAGE_RANKS: dict[str, tuple[float, float, float]] = {
    "rf/lognorm(0.00,1.00)": (1.54, 1.25, 1.50),
    "rf/lognorm(1.00,0.60)": (2.08, 3.50, 2.00),
    "rf/lognorm(0.50,0.60)": (2.71, 8.50, 1.00),
    "rf/mode(1.29)": (2.75, 3.25, 3.00),
    "rf/lognorm(0.50,1.00)": (2.83, 1.50, 2.50),
    "eps/linear": (2.88, 4.25, 2.75),
    "rf/mode(1.75)": (3.33, 2.75, 2.75),
    "rf/cosmap": (4.13, 3.75, 4.00),
    "edm(0.00,0.60)": (5.63, 13.25, 3.25),
    "rf": (5.67, 6.50, 5.75),
    "v/linear": (6.83, 5.75, 7.75),
    "edm(0.60,1.20)": (9.00, 13.00, 9.00),
    "v/cos": (9.17, 12.25, 8.75),
    "edm/cos": (11.04, 14.25, 11.25),
    "edm/rf": (13.04, 15.25, 13.25),
    "edm(-1.20,1.20)": (15.58, 20.25, 15.00),
}
