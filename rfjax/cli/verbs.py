"""The table of verbs: what a verb does, when a user wants it, and the module that does it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

# moment -> (title in `rfjax --help`, {verb with option: help} for options that serve this moment; the verb does not)
MOMENTS = {
    "data": ("data: make a corpus to train on, or start from a checkpoint", {}),
    "before": (
        "before spending: know what a study takes",
        {
            "study --list": "list the studies that come with rfjax",
            "study --dry-run": "list a study's points with their parameters, FLOPs and state",
        },
    ),
    "while": ("while spending: train and measure", {}),
    "after": (
        "after spending: from the results to laws, figures and weights",
        {"study --collect": "merge, fit and report what a study has run so far"},
    ),
}


@dataclass(frozen=True)
class Verb:
    """A row of the table. Its module has `add_arguments(parser)` and `run(args, overrides) -> exit status`."""

    name: str
    moment: str  # a key of MOMENTS
    module: str  # imported when the verb's arguments are parsed, so that other verbs' help stays quick
    help: str
    overridable: bool = False  # whether it takes --config.* overrides
    computes: bool = False  # whether it computes with JAX
    uses_device: bool = False  # whether it needs a device to compute on
    many_processes: bool = False  # whether several processes may run it as one job
    resumes: bool = False  # whether SIGTERM ends it with the status on which schedulers requeue
    tidies: bool = False  # whether SIGTERM ends it as Ctrl-C does, so that no temporary file is left

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


ELSEWHERE = {"overridable": True, "computes": True}  # uses JAX, but no device of this machine
WITH_JAX = ELSEWHERE | {"uses_device": True}
UNCHANGED = WITH_JAX | {"overridable": False}
AS_A_JOB = WITH_JAX | {"many_processes": True}
ROWS = (
    Verb("prepare", "data", "rfjax.prepare.command", "make a corpus of images and captions", tidies=True),
    Verb("inspect", "data", "rfjax.cli.inspect", "show and verify a prepared corpus"),
    Verb("duplicates", "data", "rfjax.duplicates.command", "find near-duplicate images, to leave out", tidies=True),
    Verb("recaption", "data", "rfjax.prepare.recaption", "caption images with a model, for prepare", tidies=True),
    Verb("import", "data", "rfjax.cli.import_run", "make a run of a PyTorch checkpoint", **WITH_JAX, tidies=True),
    Verb("plan", "before", "rfjax.plan.command", "predict memory, step time and cost on TPUs or GPUs", **ELSEWHERE),
    Verb(
        "design",
        "before",
        "rfjax.plan.design_command",
        "choose the runs that would improve a prediction most",
        **ELSEWHERE,
    ),
    Verb("bench", "before", "rfjax.bench.command", "time a config's step here, part by part", **WITH_JAX),
    Verb("study", "while", "rfjax.cli.study", "train every point, evaluate, fit, report", **AS_A_JOB, resumes=True),
    Verb("launch", "while", "rfjax.launch.command", "run a study on SLURM, TPU VMs or GKE", overridable=True),
    Verb("train", "while", "rfjax.cli.train", "train one run, or resume it", **AS_A_JOB, resumes=True),
    Verb("tune", "while", "rfjax.tune.command", "tune a run on its own images, by a reward", **AS_A_JOB, resumes=True),
    Verb("eval", "while", "rfjax.cli.eval", "measure a checkpoint: validation loss, GenEval, ranking", **AS_A_JOB),
    Verb("sample", "while", "rfjax.cli.sample", "make images from captions", **AS_A_JOB),
    Verb("report", "after", "rfjax.cli.report", "remake a study's report, from its runs or its results alone"),
    Verb("fit", "after", "rfjax.report.fit_command", "fit scaling laws to a results table"),
    Verb("claims", "after", "rfjax.report.claims_command", "test published laws' claims on a results table"),
    Verb("score", "after", "rfjax.scorers.command", "score a folder of images: GenEval, FID, CMMD, CLIP score"),
    Verb("compare", "after", "rfjax.compare.command", "make pages for people to vote on", **WITH_JAX, tidies=True),
    Verb("geneval", "after", "rfjax.cli.geneval", "score object detections by GenEval's rules"),
    Verb("temporal", "after", "rfjax.cli.temporal", "score detections in clips: do objects move as the prompt says"),
    Verb("votes", "after", "rfjax.votes.command", "count a preference study's votes, or tell its power"),
    Verb("export", "after", "rfjax.cli.export", "write a checkpoint for PyTorch", **UNCHANGED, tidies=True),
)
VERBS = {verb.name: verb for verb in ROWS}
