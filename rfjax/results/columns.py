"""Defines the columns of the results table: name, kind, unit and meaning.

The merge (`rfjax.results.merge`), the reader's checks and the page of docs (`rfjax.results.columns_page`) all follow
from the tables below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rfjax.data.geneval_names import TASKS
from rfjax.evaluation import preference
from rfjax.evaluation.image_folders import compbench
from rfjax.evaluation.temporal import scores as temporal
from rfjax.results import tokens

SCHEMA = 8
# schema version -> the columns that it added. In an older table these are empty, and every run has the role `run`.
ADDED: dict[int, tuple[str, ...]] = {
    5: ("role", "trunk", "trunk_step", "spent_flops", "spent_seconds"),
    6: tokens.COLUMNS,
    7: ("parametrization", "optimizer"),
    8: ("settings",),
}


@dataclass(frozen=True)
class Column:
    """A column of one of the files in a results folder; docs/results_table.md describes it."""

    name: str
    kind: str  # text | integer | number
    unit: str  # "" for none
    meaning: str
    required: bool = False  # if so, a record or a run without it is refused


def read_columns(table: str) -> tuple[Column, ...]:
    """Parses a text with a line `name | kind | unit | meaning` for each column; `*` after a name means required."""
    rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return tuple(Column(name.rstrip("*"), kind, unit, meaning, name[-1] == "*") for name, kind, unit, meaning in rows)


def key_without(*names: str) -> tuple[Column, ...]:
    """Returns the columns of `KEY` except the named ones."""
    return tuple(column for column in KEY if column.name not in names)


# What identifies an evaluation record. A new record replaces an older one with the same key.
KEY = read_columns("""
run* | text | | run id, unique in the study; `-` for a record that belongs to no run
step* | integer | steps | optimiser steps of the checkpoint; -1 for a record that belongs to no checkpoint
weights* | text | | `ema`, `raw` or a power-function average, as `power-0.12`; `-` where none applies
evaluation* | text | | `validation`, `geneval`, `geneval_ceiling`, `geneval_floor_shuffled`, `ranking`, ...
corpus* | text | | corpus evaluated on
sampler* | text | | method, steps, guidance, shift, prompts a task x images a prompt, as `euler-20-cfg4-shift1-40x4`; \
`-` without one
grid* | text | | levels of t of the validation loss and number of examples, as `paper-8-n512`; `-` without one
evaluation_seed* | integer | | seed of the evaluation's noise and prompts (`seed` in the record's key)
""")

# What was measured.
MEASURE = read_columns("""
metric* | text | | `loss`, `geneval`, `geneval_held_out`, `geneval_seen`, `temporal`, ...
item* | text | | `mean`, `t=0.125`, `overall`, a task's name, ...
value* | number | metric's own | loss: squared error of the velocity, mean over elements; geneval: fraction of images \
that are correct; temporal: docs/motion.md
stderr | number | metric's own | standard error: over examples (loss), over prompts (geneval, temporal)
low | number | metric's own | lower end of the 95 % interval
high | number | metric's own | upper end of the 95 % interval
n | integer | | number of examples (loss), images (geneval), clips (temporal)
""")

# How far training had come at the checkpoint, and what the evaluation took.
PROGRESS = read_columns("""
final | integer | | 1 where `step` is the run's planned last step, else 0
images | integer | images | training images seen so far, lineage included
flops | number | FLOP | training FLOPs so far, lineage included: 3 times the forward pass, whose multiply-accumulates \
count as 2 FLOPs each
seconds | number | s | wall time of this evaluation
train_seconds | number | s | wall time of training up to the checkpoint; for runs trained together, this run's share
image_tokens | integer | tokens | image tokens trained on so far; empty if run.json and config.json do not determine \
this number, and for a run that started from another run's checkpoint
image_tokens_per_param | number | tokens per parameter | `image_tokens` divided by `params`
tokens_per_param | number | tokens per parameter | image and text tokens divided by `params`, padding of the text \
included; empty if the text is not part of the sequence. A caption counts once, even with factorised attention over \
frames, which processes a copy for each temporal position
times_seen | number | | how often each training image was seen, on average; empty for a corpus that draws its images
""")

# What the run is, repeated on each of its rows. `run_files.RUN_FIELDS` says where each fact is in run.json.
RUN = read_columns("""
study | text | | name of the study
point | text | | id of the study's point
depth* | integer | blocks | depth of the network, which sets the width and heads of a family
hidden | integer | channels | hidden size
heads | integer | | attention heads
seed | integer | | seed of initialisation, data order and noise
learning_rate | number | per step | peak learning rate
params* | integer | parameters | trainable parameters
batch_size | integer | images | images per step
steps* | integer | steps | planned steps of this run
formulation | text | | path, prediction and density of t, as `rf/lognorm(0.00,1.00)`
backbone | text | | kind of network, as `mmdit`
schedule | text | | schedule of the learning rate
parametrization | text | | how rates and initial values move with the size; empty for `standard`
optimizer | text | | optimiser of the hidden kernels; empty for `adamw`
train_corpus | text | | corpus trained on
corpus_fingerprint | text | | hash of all that decides the training data
code_hash | text | | hash of the code that trained
parent_run | text | | run whose checkpoint this one started from; empty for none
parent_step | integer | steps | step of the checkpoint that this run started from
role | text | | what the run is to its study: `run`, `trunk`, `branch`, `sweep` or `tuned`; laws, correlations and \
rankings take runs and branches
trunk | text | | run that this run left, as a branch or to skip batches; empty for none
trunk_step | integer | steps | step at which this run left its trunk
""")

# The further columns of runs.csv, which has one row per run and also the columns `run` and RUN.
OUTCOME = read_columns("""
settings | text | | the other fields of the run's config that change what it learns, as a JSON object {dotted key: \
value} without fields at their defaults; empty without a config.json
flops_per_image | number | FLOP | training FLOPs per image: 3 times the forward pass, recomputation not counted; with \
aspect buckets, the mean over images as training draws them
flops_forward_per_image | number | FLOP | forward FLOPs per image
parent_flops | number | FLOP | training FLOPs inherited from the lineage
parent_images | integer | images | training images inherited from the lineage
platform | text | | cpu, gpu or tpu
device_kind | text | | the device's own name
devices | integer | | devices used
processes | integer | | processes used
jax_version | text | | version of JAX
state | text | | `done`, `running`, `stopped`, `failed`, `diverged`, or `unknown` without a status file
last_step | integer | steps | step in the status file
message | text | | error of a failed or diverged run
train_seconds | number | s | wall time of training, as of the last evaluated checkpoint; for runs trained together, \
this run's share; for a branch, with its trunk's time up to the departure
spent_flops | number | FLOP | training FLOPs of this run alone, without its lineage; for a branch, those after \
it left its trunk
spent_seconds | number | s | wall time of training of the same steps as in `spent_flops`
evaluation_seconds | number | s | wall time of all the run's evaluations
""")

# The training loss, averaged over windows of steps, so that a run has at most 200 rows.
CURVE = read_columns("""
run* | text | | run id
step* | integer | steps | last step of the window
train_loss* | number | loss | training loss, mean over the window's logged steps
logged* | integer | | logged steps in the window
""")

# GenEval prompt by prompt, for a bootstrap over prompts.
PROMPT = key_without("grid") + read_columns("""
prompt* | integer | | 0-based place among the evaluation's distinct prompts
task* | text | | the prompt's task
correct* | integer | images | images of the prompt that are correct
samples* | integer | images | images of the prompt
""")

# The covariance of two final checkpoints' validation losses, which are correlated because they share their examples.
PAIR = key_without("evaluation", "sampler") + read_columns("""
other_run* | text | | the other run of the pair; equal to `run` in the row with the run's variance
covariance* | number | loss squared | covariance of the two runs' mean losses, estimated from their losses per example
n* | integer | | number of examples that both runs were evaluated on
""")

# The measures that variants are ranked by, under resamples of the prompts. Resample b is the same for all runs.
REPLICATE = key_without("evaluation", "grid") + read_columns("""
metric* | text | | `ranking_geneval` or `ranking_frechet_distance`
replicates* | text | metric's own | the overall measure under each resample, numbers separated by spaces; `nan` where \
there is none
prompts_sha1* | text | | hash of the prompts (tasks and numbers of images); only rows with equal hashes are \
compared resample by resample
feature_map* | text | | name and version of the features whose distance was measured
reference_sha1* | text | | hash of the real images that distances are measured from
""")

# The key of wide.csv. A row joins a checkpoint's losses on one grid with its scores under one sampler, so a checkpoint
# with two grids and two samplers has four rows.
WIDE_KEY = key_without("evaluation", "sampler", "grid", "evaluation_seed") + read_columns("""
grid | text | | levels of t of the loss columns; empty without a loss
grid_seed | integer | | evaluation seed of the loss columns
sampler | text | | sampler of the GenEval columns; empty without a score
sampler_seed | integer | | evaluation seed of the GenEval columns
""")
WIDE_PROGRESS = tuple(column for column in PROGRESS if column.name != "seconds")

STATISTICS = (("value", ""), ("stderr", "_stderr"), ("low", "_low"), ("high", "_high"), ("n", "_n"))

LONG = KEY + MEASURE + PROGRESS + RUN
RUNS = KEY[:1] + RUN + OUTCOME

# file of a results folder -> (the columns that it must have, what a row is)
FILES = {
    "long.csv": (LONG, "one row per number of an evaluation record"),
    "wide.csv": (WIDE_KEY + WIDE_PROGRESS + RUN, "one row per checkpoint and evaluation settings"),
    "runs.csv": (RUNS, "one row per run, failed ones too"),
    "prompts.csv": (PROMPT, "one row per checkpoint and GenEval prompt"),
    "pairs.csv": (PAIR, "one row per pair of finished runs that were validated on the same examples, and one per run"),
    "replicates.csv": (REPLICATE, "one row per measure of a `ranking` record"),
    "curves.csv": (CURVE, "training loss against steps"),
}


@dataclass(frozen=True)
class Measure:
    """Identifies what a number of the results table measures: the evaluation of its record, its metric, and its
    item."""

    evaluation: str
    metric: str
    item: str = "mean"

    def format(self) -> str:
        """Returns the name of the number's column in wide.csv: `loss`, `loss@t=0.125`, `geneval_overall`,
        `geneval_held_out_position`, `geneval_floor_shuffled_overall`, ..."""
        metric, base = self.metric, self.evaluation.split("_")[0]
        if metric == base or metric.startswith(base + "_"):  # such as geneval in geneval_floor_null, or geneval_seen
            metric = self.evaluation + metric[len(base) :]
        if self.item == "mean":
            return metric
        return f"{metric}@{self.item}" if self.item.startswith("t=") else f"{metric}_{self.item}"

    @classmethod
    def parse(cls, name: str) -> Measure | None:
        """Returns the measure whose values a column of wide.csv holds. Returns None if the column holds something else,
        such as a standard error, or is not of wide.csv."""
        base, at, level = name.partition("@t=")
        found = _KNOWN.get(base)
        if not at and found is None:
            return _by_model(name)
        if not at or found is None:
            return found
        return replace(found, item=f"t={level}") if found.item == "mean" and "_" not in level else None


# GenEval evaluation of a folder of images, as the table names it -> its title; docs/metrics.md defines them
PROTOCOLS = {
    "geneval_official": "official GenEval",
    "geneval_hf_mask2former": "GenEval with the HF Mask2Former weights",
    "geneval_other_models": "GenEval with other models",
}
# Scores that a vision-language or preference model gives: metric -> its title. A record's evaluation is METRIC if the
# score comes from the metric's published model, and METRIC_by_MODEL if it comes from a model of the user's.
BY = "_by_"
OF_MODELS = {
    "vqascore": "VQAScore",
    "geneval2": "GenEval 2",
    "dpg": "DPG-Bench",
    "pickscore": "PickScore",
}
SCORED = ("overall", *TASKS)  # the items of a GenEval score
# (evaluation, metric) -> its items; a loss has one more item for each level of t
ITEMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("validation", "loss"): ("mean",),
    ("validation_mlperf", "mlperf_loss"): ("mean",),
    **{("geneval", metric): SCORED for metric in ("geneval", "geneval_held_out", "geneval_seen")},
    **{(f"geneval_{mark}", "geneval"): SCORED for mark in ("ceiling", "floor_shuffled", "floor_null")},
    **{(protocol, "geneval"): SCORED for protocol in PROTOCOLS},
    ("ranking", "ranking_geneval"): SCORED,
    ("ranking", "ranking_frechet_distance"): ("overall", "ground_truth"),
    ("sampling_steps", "sampling"): SCORED,
    ("sampling_steps", "sampling_path_length"): ("mean",),
    ("sampling_steps", "sampling_distance"): ("mean",),
    **{
        (f"{name}{other}", f"{name}{other}".replace("-", "_")): ("mean",)
        for name in ("clip-score", "fid-inception", "fid-clip", "cmmd", "fvd", "mmd-vjepa2")
        for other in ("", "-other-model")
    },
    ("compbench", "compbench"): tuple(compbench.RESULTS),
    **{(temporal.METRIC, metric): temporal.ITEMS for metric in temporal.METRICS},
    **{(temporal.CEILING, metric): temporal.ITEMS for metric in temporal.OF_PROMPTS},
    **{(preference.EVALUATION, metric): preference.QUESTIONS for metric in preference.METRICS},
}
_KNOWN = {
    measure.format(): measure for named, items in ITEMS.items() for measure in (Measure(*named, i) for i in items)
}


_BY_MODEL = re.compile(rf"({'|'.join((*OF_MODELS, 'geneval'))})({BY}[a-z0-9-]+)?")


def _by_model(name: str) -> Measure | None:
    """Returns the measure of a column such as `vqascore_by_llava-1a2b3c4d_overall`; None for any other column."""
    found = _BY_MODEL.match(name)
    if found is None or name.endswith(tuple(suffix for _, suffix in STATISTICS if suffix)):
        return None
    rest = name[found.end() :]
    own = found[2] or found[1] in OF_MODELS
    return Measure(found[0], found[1], rest[1:]) if own and rest.startswith("_") and rest != "_" else None


def protocols(evaluations: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns {evaluation: (its metric, its title)} of the scores of folders of images that the report correlates with
    the loss: the protocols of GenEval, and those among `evaluations` with a score of `OF_MODELS` or with GenEval by a
    detector that the user gave.
    """
    named = {evaluation: ("geneval", title) for evaluation, title in PROTOCOLS.items()}
    titles = OF_MODELS | {"geneval": "GenEval with boxes"}
    for evaluation in sorted(set(evaluations)):
        found = _BY_MODEL.fullmatch(evaluation)
        if found and (found[2] or found[1] in OF_MODELS):
            by = f" by {found[2].removeprefix(BY)}" if found[2] else ""
            named[evaluation] = (found[1], titles[found[1]] + by)
    return named


def score_column(item: str = "overall") -> str:
    """Returns the name of the column of wide.csv with the GenEval score (overall, or of one task) by the corpus's own
    detector."""
    return Measure("geneval", "geneval", item).format()


def loss_levels(names: Iterable[str]) -> dict[str, str]:
    """Returns {level of t, as text: column} for those among `names` that are columns of the validation loss at one
    level."""
    found = ((Measure.parse(name), name) for name in names)
    return {
        measure.item.removeprefix("t="): name
        for measure, name in found
        if measure and measure.evaluation == "validation" and measure.item != "mean"
    }


def measure_columns(name: str) -> tuple[Column, ...]:
    """Returns the columns of wide.csv for one measured number: value, standard error, interval, count."""
    by_name = {column.name: column for column in MEASURE}
    return tuple(
        Column(name + suffix, by_name[statistic].kind, by_name[statistic].unit, f"{statistic} of {name}")
        for statistic, suffix in STATISTICS
    )
