"""Takes a learning rate from a sweep, for `"train.learning_rate": "from:RUNS"` in a config or a point of a study.

RUNS is the folder of the sweep: of a study whose runs have `config.train.role` "sweep".
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from rfjax import config as configs
from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.evaluation.kinds import validation
from rfjax.evaluation.records import read_records
from rfjax.inputs.paths import local_path
from rfjax.study.rate_optimum import RateOptimum, compare_optima, find_optimum
from rfjax.study.sweep_fields import OF_LOSS, differing, shared_fields
from rfjax.training import run_folder
from rfjax.training.run_folder import RunFacts
from rfjax.weight_names import is_trained

PREFIX = "from:"
KEY = "train.learning_rate"
# Fields that a config must have in common with the sweep that its learning rate comes from.
SAME = (
    "formulation",
    "timestep_shift",
    "timestep_shift_by_area",
    "timestep_shift_frames",
    "data.corpus",
    "model.backbone",
    "model.parametrization",
    "model.base_width",
    "model.base_depth",
    "model.balanced_width",
    "train.optimizer",
    "train.batch_size",
    "train.tokens_per_batch",
)
WEIGHTS = ("raw", "ema")  # whose losses a sweep is judged by: the first that all its runs have
Size = tuple[int, int]  # depth and width


@dataclass(frozen=True, kw_only=True)
class SweptRun:
    """A run of a sweep that has ended. `loss` is its final validation loss; None if the run diverged."""

    name: str
    config: Config
    fingerprint: str  # of its corpus
    loss: float | None

    @property
    def size(self) -> Size:
        return self.config.model.depth, self.config.model.width


def sweep_folder(value: object) -> str | None:
    """Returns the sweep's folder RUNS if a value of `train.learning_rate` is `from:RUNS`; None for any other value."""
    return value.removeprefix(PREFIX) if isinstance(value, str) and value.startswith(PREFIX) else None


def read_sweep(folder: str | Path) -> list[SweptRun]:
    """Reads the runs of role `sweep` in a study's folder.

    A run's loss is measured by the settings of the run's own config: corpus, grid, number of examples and seed. It is
    that of the raw weights if all runs have such a loss, and otherwise that of the average. A run whose loss is not
    finite counts as diverged.

    Raises `ConfigError` in these cases: no run of the sweep is done; a run has neither finished nor diverged; the runs
    differ in a field that the runs of a sweep share (`sweep_fields`); neither kind of weights has a loss in all runs.
    """
    given = f"config.{KEY} is {PREFIX}{folder}"
    ended = _ended_runs(folder, given)
    _check_one_sweep([config for _, config, _ in ended.values()], given)
    losses = {
        workdir: _final_losses(workdir, config) for workdir, (_, config, state) in ended.items() if state == "done"
    }
    if not any(losses.values()):
        raise ConfigError(
            f"{given}, and no finished run of a sweep is there with the final validation loss that its config asks "
            "for; name the folder of a study that was trained with config.train.role=sweep"
        )
    weights = next((name for name in WEIGHTS if all(name in found for found in losses.values())), None)
    if weights is None:
        lacking = [workdir for workdir, found in losses.items() if WEIGHTS[0] not in found]
        raise ConfigError(
            f"{given}, where {_listed([workdir.name for workdir in lacking])} have no final validation loss of the "
            f"{WEIGHTS[0]} weights on the grid of their config, and the other runs have one; measure it: rfjax eval "
            f"{shlex.quote(str(lacking[0]))} --weights {WEIGHTS[0]}"
        )
    return [
        SweptRun(
            name=workdir.name,
            config=config,
            fingerprint=record["corpus_fingerprint"],
            loss=losses[workdir][weights] if workdir in losses else None,
        )
        for workdir, (record, config, _) in ended.items()
    ]


def _ended_runs(folder: str | Path, given: str) -> dict[Path, tuple[RunFacts, Config, str]]:
    """Returns {folder of a run: its run.json, its config, its state} of the sweep's runs. Raises `ConfigError` if one
    has neither finished nor diverged."""
    root, ended, unfinished = local_path(folder, f"{KEY}={PREFIX}"), {}, []
    for workdir in sorted(root.iterdir()) if root.is_dir() else ():
        if not any((workdir / name).is_file() for name in ("run.json", "status.json")):
            continue
        record, state = run_folder.read_run(workdir), run_folder.read_status(workdir)["state"]
        if record is not None and record.get("role") != "sweep":
            continue
        if record is None or state not in ("done", "diverged"):  # a run that failed early has no run.json
            unfinished.append(f"{workdir.name} ({state})")
        else:
            ended[workdir] = record, run_folder.read_config(workdir), state
    if unfinished:
        raise ConfigError(
            f"{given}, and {len(unfinished)} of the runs there have not finished: {_listed(unfinished)}; finish the "
            f"sweep: rfjax study --config CONFIG --workdir {shlex.quote(str(folder))}, where CONFIG is the sweep's own"
        )
    return ended


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _check_one_sweep(runs: Sequence[Config], given: str) -> None:
    """Raises `ConfigError` if the configs differ in a field that the runs of one sweep share, or that says which loss
    is measured."""
    flat = [configs.flatten(config) for config in runs]
    shared = [shared_fields(fields) | {key: fields[key] for key in OF_LOSS} for fields in flat]
    apart = [f"config.{key} ({_listed(list(map(str, values)))})" for key, values in differing(shared).items()]
    if apart:
        raise ConfigError(
            f"{given}, whose runs are several sweeps: they differ in {', '.join(apart)}. Train each sweep in a folder "
            "of its own, and name one of them"
        )


def _final_losses(workdir: Path, config: Config) -> dict[str, float | None]:
    """Returns {weights: mean validation loss at the last step} of a run, for raw and ema weights, as the config
    measures it. A loss that is not a positive number is None."""
    steps, seed = config.train.steps, config.evaluation.validation.seed
    wanted = {"evaluation": "validation", "step": steps, "seed": seed, "corpus": config.data.label}
    due = validation.due(config, steps, last=True)  # empty if the config asks for no validation loss
    wanted |= {"grid": due[0][1]["grid"] if due else ""}
    found = {}
    for record in read_records(workdir):
        key = record["key"]
        if all(key[name] == value for name, value in wanted.items()) and is_trained(key["weights"]):
            for each in record["values"]:
                if (each["metric"], each["item"]) == ("loss", "mean"):
                    found[key["weights"]] = each["value"] if (each["value"] or 0) > 0 else None
    return found


def diverged_rates(runs: Sequence[SweptRun]) -> dict[Size, dict[float, str]]:
    """Returns {size: {rate: a text such as "1 of 3 runs diverged"}} of the rates at which a run diverged."""
    tried: dict[tuple[Size, float], list[bool]] = {}
    for run in runs:
        tried.setdefault((run.size, run.config.train.learning_rate), []).append(run.loss is None)
    found: dict[Size, dict[float, str]] = {}
    for (size, rate), lost in sorted(tried.items()):
        if any(lost):
            found.setdefault(size, {})[rate] = f"{sum(lost)} of {len(lost)} runs diverged"
    return found


def optima_of(runs: Sequence[SweptRun]) -> dict[Size, RateOptimum]:
    """Returns {(depth, width): the `RateOptimum` of the sweep's runs of this size}. A rate at which a run of the size
    diverged does not count as tried. A size that was tried with only one rate is left out."""
    sizes: dict[Size, dict[float, list[float]]] = {}
    diverged = diverged_rates(runs)
    for run in runs:
        rate = run.config.train.learning_rate
        if run.loss is not None and rate not in diverged.get(run.size, {}):
            sizes.setdefault(run.size, {}).setdefault(rate, []).append(run.loss)
    return {size: find_optimum(losses) for size, losses in sorted(sizes.items()) if len(losses) > 1}


def settled_rate(folder: str | Path, config: Config, fingerprint: str | None = None) -> float:
    """Returns the learning rate that the sweep in a folder gives to `config`.

    Under the parametrisations mup and completep this is the geometric mean of the optima of all sizes; under standard
    it is the optimum of the config's own size. `fingerprint` is the fingerprint of the config's corpus, with which the
    sweep's must agree; None if it need not.

    Raises `ConfigError` as `read_sweep` does, and in these cases: the sweep has another corpus, or another value of a
    field in `SAME`; an optimum is at the edge of its grid; a size has fewer than two rates at which no run diverged;
    the optima of the sizes are apart (`compare_optima`); no size was tried with two rates; under standard, the config's
    own size was not tried with two rates.
    """
    runs, given = read_sweep(folder), f"config.{KEY} is {PREFIX}{folder}"
    for run in runs:
        _check_same(run, config, fingerprint, given)
    optima, diverged = optima_of(runs), diverged_rates(runs)
    if config.model.parametrization == "standard":
        size = config.model.depth, config.model.width
        if size not in optima and size not in diverged:
            swept = ", ".join(_name(each) for each in optima) or "none"
            raise ConfigError(
                f"{given}, which has no sweep of {_name(size)} (it has {swept}); under standard the best rate depends "
                "on the size: sweep it, or use config.model.parametrization=mup"
            )
        optima = {each: one for each, one in optima.items() if each == size}
        diverged = {each: rates for each, rates in diverged.items() if each == size}
    for size, rates in diverged.items():
        if size not in optima:
            raise ConfigError(
                f"{given}, where {_name(size)} has fewer than two rates at which no run diverged{_said(rates)}; sweep "
                "more rates below"
            )
    if not optima:
        raise ConfigError(f"{given}, and no size there has two learning rates; sweep more rates")
    for size, one in optima.items():
        if one.edge:
            lost = diverged.get(size, {})
            beyond = [rate for rate in lost if (rate > one.best) == (one.edge == "largest")]
            raise ConfigError(
                f"{given}, where the best rate of {_name(size)} is the {one.edge} of its grid, {one.best:g}"
                f"{_said(lost)}; " + ("sweep rates between" if beyond else "widen the grid")
            )
    agreement = compare_optima({_name(size): one for size, one in optima.items()})
    if agreement.verdict == "apart":
        raise ConfigError(f"{given}: {agreement.sentence}; give a number")
    return float(f"{math.exp(sum(math.log(one.rate) for one in optima.values()) / len(optima)):.6g}")


def _check_same(run: SweptRun, config: Config, fingerprint: str | None, given: str) -> None:
    """Raises `ConfigError` if a run of the sweep has another value of a field in `SAME` than `config`, or another
    corpus."""
    for key in SAME:
        ours, theirs = attrgetter(key)(config), attrgetter(key)(run.config)
        if ours != theirs:
            remedy = "give the folder of a sweep with the same, or a number"
            raise ConfigError(f"{given}, whose runs have config.{key}={theirs}, and this one has {ours}; {remedy}")
    label = run.config.data.label
    if config.data.label != label or fingerprint not in (None, run.fingerprint):
        raise ConfigError(
            f"{given}, whose runs learnt from another corpus ({label}, {run.fingerprint}) than this one "
            f"({config.data.label}, {fingerprint}); give the folder of a sweep on the same corpus, or a number"
        )


def _said(diverged: Mapping[float, str]) -> str:
    """Returns the rates at which runs diverged as a text to be added to a message; "" if there are none."""
    said = "; ".join(f"at {rate:g} {text}" for rate, text in diverged.items())
    return f" ({said})" if said else ""


def _name(size: tuple[int, int]) -> str:
    return f"depth {size[0]}, width {size[1]}"
