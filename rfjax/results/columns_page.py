"""Writes the page of docs about the results table, from the tables of `rfjax.results.columns`.

python -m rfjax.results.columns_page > docs/results_table.md
"""

from __future__ import annotations

from rfjax.results import columns
from rfjax.results.many_runs import ANCHORS, MANY_RUNS

_INTRODUCTION = """\
# The results table

`rfjax study` merges the evaluation records of a study's runs into a results folder; fits, reports
and notebooks read that folder and nothing else. Schema version {schema}.

Numbers are written with all their digits: reading gives back the very same floats. Empty means
"not measured". `table.json` holds the schema version, each file's columns with units, the SHA-256
of each file, the list of sample sheets under `samples/`, and notes on what was left out. A file
whose hash does not match is refused: do not mend it by hand, but run `rfjax study --collect` again.

Time runs from t = 0 (data) to t = 1 (noise). The loss is the squared error of the velocity, mean
over elements, then over examples, then over the grid's levels. GenEval scores are fractions of
images; overall is the unweighted mean of the six tasks.
"""

_MEASURES = """\
Then five columns for each number that an evaluation gave:

| column | meaning |
|---|---|
| *name* | its value |
| *name*`_stderr` | its standard error |
| *name*`_low`, *name*`_high` | its 95 % interval |
| *name*`_n` | number of examples, images or clips that it is computed from |

where *name* is the metric, followed by the item unless that is `mean`:

| name | meaning |
|---|---|
| `loss` | validation loss, mean over the grid's levels |
| `loss@t=0.125` | validation loss at one level of t |
| `geneval_overall`, `geneval_two_object`, ... | GenEval overall and per task |
| `geneval_held_out_overall`, `geneval_seen_overall`, ... | GenEval over the prompts with (`held_out`) and without \
(`seen`) a (colour, shape) pair that never occurs in training |
| `geneval_floor_shuffled_overall`, ... | the same images scored against other prompts of the same task |
| `geneval_floor_null_overall`, ... | GenEval of samples of the null condition |
| `ranking_geneval_overall`, ... | GenEval under one of a ranking's controls (docs/ranking.md) |
| `ranking_frechet_distance_overall` | Frechet distance from real images under the control, in the square of the \
features' unit; `ranking_frechet_distance_ground_truth` is the distance \
of equally many pictures that the corpus draws for the same prompts |
| `geneval_official_overall`, ... | GenEval by the official protocol (`rfjax score`, docs/metrics.md); \
`geneval_hf_mask2former_...` with transformers' detector, `geneval_other_models_...` with any other models |
| `clip_score`, `fid_inception`, `fid_clip`, `cmmd` | scores of a folder of images, as docs/metrics.md defines \
them; with `_other_model` where the model is not the metric's own |
| `fvd`, `mmd_vjepa2` | distances of a folder of clips from a reference, as docs/metrics.md defines them; with \
`_other_model`, too |
| `vqascore_by_MODEL_overall`, `geneval2_by_MODEL_overall`, `geneval2_by_MODEL_am`, `dpg_by_MODEL_overall`, \
`pickscore_by_MODEL_overall`, ... | scores by a model of the user's (docs/questions.md); MODEL is the name of the \
model's folder and the first digits of the model's hash. Without `_by_MODEL`, scores by the metric's published model |
| `geneval_by_MODEL_overall`, ... | GenEval's rules on another detector's boxes (docs/metrics.md) |
| `compbench_color`, ... | T2I-CompBench, by its own scorers |
| `mlperf_loss`, `mlperf_loss@t=0.125`, ... | MLPerf's validation loss, each example at one level (`rfjax eval \
--mlperf-levels`) |
| `temporal_motion`, `temporal_speed`, `temporal_still`, ... | temporal GenEval per task: share of clips that are \
right; `temporal_all_moving` and `temporal_all_still` are means over tasks (docs/motion.md) |
| `temporal_direction_right`, `temporal_frames_right` | soft measures, averaged over clips: share of the moving \
objects whose colour goes the asked way, and share of frames with the right class and colour |
| `temporal_pixels_a_frame`, `temporal_pixels_a_frame_slow`, ... | how far the asked colour moves in the asked \
direction, in pixels a frame; with `_slow` and `_fast` over the prompts that ask for this speed |
| `temporal_velocity_error`, `temporal_velocity_found` | velocity error in pixels a frame, less is better, and share \
of clips that have one because their moving objects are found (docs/motion.md) |
| `temporal_floor_ground_truth_velocity_error`, `temporal_seen_floor_ground_truth_velocity_error`, ... | velocity \
error of ground-truth clips: the detector's own |
| `temporal_held_out_motion`, `temporal_seen_direction_right`, ... | temporal scores over the prompts with \
(`held_out`) and without (`seen`) a (class, colour, direction) that never occurs in training |
| `temporal_floor_shuffled_direction_right`, ... | the score of the same clips under a floor: `shuffled`, `reversed`, \
`first_held`, `other_prompts`, or clips of the `null` condition |
| `sampling_steps_overall`, ... | GenEval at one of several counts of sampling steps (`rfjax eval --sampling-steps`), \
in a row of its own |
| `sampling_steps_path_length` | length of a latent's path: the sum over sampling steps of the norm of its change; \
mean over images |
| `sampling_steps_distance` | root mean square difference between a latent and the one from the same noise with the \
most sampling steps; mean over images |
| `preference_win_rate_aesthetics`, ... | share of votes that preferred the run's images to those of the study's other \
runs, a tie being half (`rfjax votes`, docs/votes.md), by question: `aesthetics`, `prompt`, `typography` |
| `preference_strength_aesthetics`, ... | strength of Bradley and Terry's model, in log odds; the strengths of a \
study's runs add up to zero |

Records that belong to no checkpoint (step -1: the detector's ceiling on rendered ground truth) are
in `long.csv` only.
"""

_MANY = f"""\
With more than {MANY_RUNS} runs, `pairs.csv` does not hold every pair. {ANCHORS} runs, spread over the range of losses,
are the anchors. Each run has a row with itself (its variance) and one with each anchor. Fits approximate the covariance
of two runs that are no anchors from their covariances with the anchors.
"""


def markdown() -> str:
    """Returns the text of docs/results_table.md."""
    parts = [_INTRODUCTION.format(schema=columns.SCHEMA)]
    for name, (own, row) in columns.FILES.items():
        lines = [
            f"## {name}\n",
            f"{row[0].upper()}{row[1:]}.\n",
            "| column | kind | unit | meaning |",
            "|---|---|---|---|",
        ]
        lines += [f"| `{c.name}` | {c.kind} | {c.unit or '-'} | {c.meaning} |" for c in own]
        parts.append("\n".join(lines) + "\n")
        parts += [_MEASURES] if name == "wide.csv" else [_MANY] if name == "pairs.csv" else []
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
