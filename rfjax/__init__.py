"""Scaling studies of rectified-flow text-to-image transformers, as a library.

    import rfjax

    config = rfjax.load_config("shapes", {"train.steps": 200})   # a shipped name, or a path
    run = rfjax.make_run(config, "runs/a")
    rfjax.train(run)                                             # the same call resumes
    records = rfjax.evaluate("runs/a")                           # validation loss and GenEval of the newest checkpoint
    table = rfjax.read_results("runs/shapes/results")            # of a study: `table.wide` and more
    law = rfjax.fit(points)                                      # `points`: a DataFrame with run, loss and flops

A name is imported when it is first used, so that `import rfjax` is quick and needs no JAX.
"""

from __future__ import annotations

import importlib

# name -> where it is defined
_PUBLIC = {
    "Config": "rfjax.config:Config",
    "load_config": "rfjax.config_files:load",
    "Run": "rfjax.training.run:Run",
    "make_run": "rfjax.training.run:make_run",
    "open_run": "rfjax.training.run:open_run",
    "train": "rfjax.training.loop:train",
    "evaluate": "rfjax.evaluation.evaluate:evaluate_run",
    "load_study": "rfjax.study.study:load_study",
    "run_study": "rfjax.study.study:run_study",
    "read_results": "rfjax.results.results_folder:read",
    "read_table": "rfjax.results.foreign_table:read_table",
    "LAWS": "rfjax.laws.laws:LAWS",
    "fit": "rfjax.laws.fitting:fit",
    "RfjaxError": "rfjax.errors:RfjaxError",
    "ConfigError": "rfjax.errors:ConfigError",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"rfjax has no public name {name!r}; it has {', '.join(_PUBLIC)}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
