"""Extracts from a results folder the two tables that the notebooks read: finished runs, and GenEval by prompt.

    python analysis/small_table.py runs/shapes/results analysis/results/default_study

writes <out>.csv (one row per finished run at the study's primary settings, as `rfjax fit` chooses
them) and <out>_prompts.csv.
"""

import sys
from pathlib import Path

from rfjax.files import write_whole
from rfjax.laws import study_fits
from rfjax.results import results_folder


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    table, out = results_folder.read(sys.argv[1]), sys.argv[2]
    settings = study_fits.primary_settings(table)
    points = study_fits.final_points(study_fits.checkpoints(table, settings)).dropna(axis=1, how="all")
    points = points.drop(columns=["frontier", "best_rate"])  # they follow from the rest
    prompts = points[["run", "step"]].merge(table.prompts, on=["run", "step"])
    prompts = prompts[(prompts["weights"] == settings.weights) & (prompts["sampler"] == settings.sampler)]
    prompts = prompts[["run", "prompt", "task", "correct", "samples"]]
    write_whole(
        {Path(f"{out}.csv"): results_folder.to_csv(points), Path(f"{out}_prompts.csv"): results_folder.to_csv(prompts)}
    )


if __name__ == "__main__":
    main()
