"""Takes a learning rate from a sweep, for `"train.learning_rate": "from:RUNS"` in a config or a point of a study.

RUNS is the folder of the sweep: of a study whose runs have `config.train.role` "sweep". No JAX here.
"""

from __future__ import annotations

import math
from operator import attrgetter
from pathlib import Path

from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records
from rfjax.inputs.paths import local_path
from rfjax.study.rate_optimum import RateOptimum, compare_optima, find_optimum
from rfjax.training import run_folder
from rfjax.weight_names import is_trained

PREFIX = "from:"
KEY = "train.learning_rate"
# Fields that a config must have in common with the sweep that its learning rate comes from.
SAME = (
    "formulation",
    "data.corpus",
    "model.backbone",
    "model.parametrization",
    "model.base_width",
    "model.base_depth",
    "model.balanced_width",
    "train.optimizer",
    "train.batch_size",
)


def sweep_folder(value: object) -> str | None:
    """Returns the sweep's folder RUNS if a value of `train.learning_rate` is `from:RUNS`; None for any other value."""
    return value.removeprefix(PREFIX) if isinstance(value, str) and value.startswith(PREFIX) else None


def read_sweep(folder: str | Path) -> list[tuple[Config, str, float]]:
    """Reads the finished runs of role `sweep` in a study's folder.

    Returns (config, fingerprint of the corpus, final validation loss) for each run that has such a loss. The loss is
    that of the raw weights, or of the average if the raw weights were not validated. Raises `ConfigError` if there is
    no such run.
    """
    root = local_path(folder, f"{KEY}={PREFIX}")
    found = []
    for workdir in sorted(path for path in root.iterdir() if (path / "run.json").is_file()) if root.is_dir() else ():
        record = run_folder.read_run(workdir)
        if record.get("role") != "sweep" or run_folder.read_status(workdir)["state"] != "done":
            continue
        config = run_folder.read_config(workdir)
        losses = _final_losses(workdir, config)
        if losses:
            found.append((config, record["corpus_fingerprint"], losses.get("raw", next(iter(losses.values())))))
    if not found:
        raise ConfigError(
            f"config.{KEY} is {PREFIX}{folder}, and no finished run of a sweep with a validation loss is there; name "
            "the folder of a study that was trained with config.train.role=sweep"
        )
    return found


def _final_losses(workdir: Path, config: Config) -> dict[str, float]:
    """Returns {weights: mean validation loss at the last step} of a run, for raw and ema weights."""
    settings = config.evaluation.validation
    found = {}
    for record in read_records(workdir):
        key = record["key"]
        if (key["evaluation"], key["step"], key["seed"]) == ("validation", config.train.steps, settings.seed):
            means = [v["value"] for v in record["values"] if (v["metric"], v["item"]) == ("loss", "mean")]
            if means and means[0] is not None and means[0] > 0 and is_trained(key["weights"]):
                found[key["weights"]] = means[0]
    return found


def optima_of(runs: list[tuple[Config, str, float]]) -> dict[tuple[int, int], RateOptimum]:
    """Returns {(depth, width): the `RateOptimum` of the sweep's runs of this size}. A size that was tried with only one
    rate is left out."""
    sizes: dict[tuple[int, int], dict[float, list[float]]] = {}
    for config, _, loss in runs:
        at = sizes.setdefault((config.model.depth, config.model.width), {})
        at.setdefault(config.train.learning_rate, []).append(loss)
    return {size: find_optimum(losses) for size, losses in sorted(sizes.items()) if len(losses) > 1}


def settled_rate(folder: str | Path, config: Config, fingerprint: str | None = None) -> float:
    """Returns the learning rate that the sweep in a folder gives to `config`.

    Under the parametrisations mup and completep this is the geometric mean of the optima of all sizes; under standard
    it is the optimum of the config's own size. `fingerprint` is the fingerprint of the config's corpus, with which the
    sweep's must agree; None if it need not.

    Raises `ConfigError` in these cases: the sweep has another corpus, or another value of a field in `SAME`; an optimum
    is at the edge of its grid; the optima of the sizes are apart (`compare_optima`); no size was tried with two rates;
    under standard, the config's own size was not tried with two rates.
    """
    runs, given = read_sweep(folder), f"config.{KEY} is {PREFIX}{folder}"
    for other, data, _ in runs:
        for key in SAME:
            ours, theirs = attrgetter(key)(config), attrgetter(key)(other)
            if ours != theirs:
                remedy = "give the folder of a sweep with the same, or a number"
                raise ConfigError(f"{given}, whose runs have config.{key}={theirs}, and this one has {ours}; {remedy}")
        if config.data.label != other.data.label or fingerprint not in (None, data):
            raise ConfigError(
                f"{given}, whose runs learnt from another corpus ({other.data.label}, {data}) than this one "
                f"({config.data.label}, {fingerprint}); give the folder of a sweep on the same corpus, or a number"
            )
    optima = optima_of(runs)
    if config.model.parametrization == "standard":
        size = config.model.depth, config.model.width
        if size not in optima:
            swept = ", ".join(_name(each) for each in optima) or "none"
            raise ConfigError(
                f"{given}, which has no sweep of {_name(size)} (it has {swept}); under standard the best rate depends "
                "on the size: sweep it, or use config.model.parametrization=mup"
            )
        optima = {size: optima[size]}
    if not optima:
        raise ConfigError(f"{given}, and no size there has two learning rates; sweep more rates")
    for size, one in optima.items():
        if one.edge:
            raise ConfigError(
                f"{given}, where the best rate of {_name(size)} is the {one.edge} of its grid, {one.best:g}; widen the "
                "grid"
            )
    agreement = compare_optima({_name(size): one for size, one in optima.items()})
    if agreement.verdict == "apart":
        raise ConfigError(f"{given}: {agreement.sentence}; give a number")
    return float(f"{math.exp(sum(math.log(one.rate) for one in optima.values()) / len(optima)):.6g}")


def _name(size: tuple[int, int]) -> str:
    return f"depth {size[0]}, width {size[1]}"
