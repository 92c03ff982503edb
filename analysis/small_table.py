"""What of a results folder the notebooks read: its finished runs, and GenEval prompt by prompt.

    python analysis/small_table.py runs/shapes/results analysis/results/default_study

writes <out>.csv (one row per finished run at the study's primary settings, as `rfjax fit` chooses
them) and <out>_prompts.csv.
"""

import sys
from pathlib import Path

from rfjax.files import write_whole
from rfjax.scaling import frontier, results


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    table, out = results.read(sys.argv[1]), sys.argv[2]
    settings = frontier.primary_settings(table)
    points = frontier.final_points(frontier.checkpoints(table, settings)).dropna(axis=1, how="all")
    points = points.drop(columns=["frontier", "best_rate"])  # they follow from the rest
    prompts = points[["run", "step"]].merge(table.prompts, on=["run", "step"])
    prompts = prompts[(prompts["weights"] == settings.weights) & (prompts["sampler"] == settings.sampler)]
    prompts = prompts[["run", "prompt", "task", "correct", "samples"]]
    write_whole({Path(f"{out}.csv"): results.to_csv(points), Path(f"{out}_prompts.csv"): results.to_csv(prompts)})


if __name__ == "__main__":
    main()
