"""Tunes a run, from a checkpoint of the base run to a tuned and measured run in a folder of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from rfjax.console import printable
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.evaluate import Evaluator
from rfjax.inputs.json_files import read_json
from rfjax.inputs.paths import local_path
from rfjax.trackers import follow
from rfjax.training import adapted, lineage, run_folder
from rfjax.training.kept_steps import evaluated_steps
from rfjax.training.loop import train
from rfjax.training.processes import distributed
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.run import Run, make_run
from rfjax.tune import grpo, voted_pairs, watch
from rfjax.tune import prompts as prompt_lists
from rfjax.tune.config import TuneConfig, differences, from_dict, run_config, to_dict
from rfjax.tune.learning import Learning, Source
from rfjax.tune.methods import METHODS
from rfjax.tune.rewards import hash_of_file, make_reward
from rfjax.tune.rollouts import Rollouts

FILE = "tune.json"
REWARD_FILES = "reward_files"  # the field of run.json with the result of `_reward_files`


def tune_run(
    origin: str,
    workdir: Path,
    tune: TuneConfig,
    *,
    evaluate: bool = True,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Tunes the base run `origin` (`RUN@STEP`, or `RUN` for its newest checkpoint). The tuned run is in `workdir`.

    The same call resumes. With `evaluate`, the last checkpoint gets the evaluations of the base run's config. Raises
    `ConfigError` if `workdir` holds another tuning or the base run cannot be tuned, and all errors of
    `training.loop.train`.
    """
    parent = distributed.from_first(lambda: lineage.read_parent(origin, "RUN"))
    base = run_folder.read_config(Path(parent.path))
    if base is None:
        raise ConfigError(f"{parent.path} has no config.json; name the folder of a run")
    _check_folder(workdir, tune)
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopSignal())
        run = make_run(run_config(base, tune), workdir, role="tuned")
        if METHODS[tune.method].stochastic:
            grpo.check(tune, tune.sampler(run.config.evaluation.sampler))
        if len(run.corpus.parts) > 1:
            raise ConfigError(f"{parent.path} was trained on several latent shapes; tuning takes runs of one shape")
        run_folder.check_corpus(Path(parent.path), run_folder.read_run(Path(parent.path)), run.corpus)
        every = prompt_lists.all_prompts(run.corpus, needed=not tune.votes.folder)
        tuned, held_out = prompt_lists.split(every, tune.held_out_prompts)
        fields = {"reward": tune.reward, "held_out_reward": tune.held_out_reward} if every else {}
        rewards = {name: make_reward(name, run.corpus, field) for field, name in fields.items()}
        reward_files = distributed.from_first(lambda: _reward_files(workdir, fields))
        programs: dict = {}
        evaluator = Evaluator(run, programs) if evaluate else None
        if tune.votes.folder:
            source: Source = _voted_examples(run, tune, every, tuned)
        else:
            source = Rollouts(run, tune, tuned, rewards[tune.reward], programs)
        watched = prompt_lists.to_watch(every, held_out, tune.watch.prompts_per_task)
        measure = watch.Watch(run, tune, watched, rewards, programs)
        facts = distributed.from_first(
            lambda: (
                adapted.adapter_of(workdir)
                or adapted.describe(Path(parent.path), parent.step, tune.weights, workdir, tune.lora.rank, tune.alpha)
            )
        )
        learning = Learning(run, tune, facts, source, measure)

        def on_checkpoint(step, state):
            measure(step, lambda: learning.merged(state.ema))
            if evaluator:
                weights = {"ema": learning.merged(state.ema), "raw": learning.merged(state.params)}
                evaluator.measure(evaluator.missing([step]), weights, stop)

        _note_tuning(workdir, tune)
        stack.enter_context(follow([run]))
        work = dataclasses.replace(learning.work, facts={**learning.work.facts, REWARD_FILES: reward_files})
        train(run, init_from=origin, on_checkpoint=on_checkpoint, stop=stop, work=work)
        with run.computing():
            measure(tune.steps, lambda: run.restore_params(tune.steps, "ema"))
        if evaluator:
            evaluator.measure(evaluator.missing(sorted(evaluated_steps(run))), stop=stop)


def _voted_examples(run: Run, tune: TuneConfig, every, tuned) -> voted_pairs.VotedExamples:
    """The pairs that people voted on, without those whose prompts are held out of tuning. Prints what was left out."""
    prompts, kept = ({row["prompt"] for rows in some.values() for row in rows} for some in (every, tuned))
    voted = voted_pairs.read_pairs(
        local_path(tune.votes.folder, "config.votes.folder"), tune.votes.question, prompts - kept
    )
    voted_pairs.check_same(run.workdir, voted)
    if distributed.is_first():
        unknown = run.corpus.unknown_words(voted.prompts)
        lines = [*voted.lines] + [f"warning: no caption of the corpus has {', '.join(unknown[:5])}"] * bool(unknown)
        print("\n".join(map(printable, lines)), flush=True)
    return voted_pairs.VotedExamples(tune, voted, voted_pairs.to_examples(voted, run))


def _reward_files(workdir: Path, fields: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns {a user's own reward, as FILE.py:FUNCTION: the file's hashes since the tuning began, the newest last}. A
    hash is added when the file has changed. Then this also prints a warning, and the tuning goes on, because the change
    may be a correction."""
    record = read_json(workdir / "run.json", dict[str, object]) if (workdir / "run.json").is_file() else {}
    found = {}
    for field, name in fields.items():
        if (now := hash_of_file(name, f"config.{field}")) is None:
            continue
        before = list(record.get(REWARD_FILES, {}).get(name, ()))
        found[name] = before if before[-1:] == [now] else [*before, now]
        if before and before[-1] != now:
            line = f"warning: the file of config.{field} ({name}) has changed since {workdir} was begun; images before"
            print(printable(f"{line} step {record.get('step', 0)} were rated by the file as it was"), flush=True)
    return found


def _check_folder(workdir: Path, tune: TuneConfig) -> None:
    """Raises `ConfigError` if `workdir` holds a run that was not tuned, or another tuning (naming what differs)."""
    run_folder.check_run_folder(workdir)
    held = read_tuning(workdir)
    if held is None:
        if (workdir / "run.json").exists():
            raise ConfigError(f"{workdir} holds a run that was not tuned; use another --workdir")
        return
    if keys := differences(held, tune):
        said = ", ".join(f"config.{key}" for key in keys)
        raise ConfigError(f"{workdir} holds another tuning; it differs in {said}; use another --workdir")


def read_tuning(workdir: Path) -> TuneConfig | None:
    """Reads the config of the tuning in a folder; None if there is none. Raises `RfjaxError` for a damaged file."""
    try:
        return from_dict(read_json(workdir / FILE, dict[str, object], remedy="restore it, or use another --workdir"))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise RfjaxError(f"{workdir / FILE} holds no tuning: {error}; restore it, or use another --workdir") from None


def _note_tuning(workdir: Path, tune: TuneConfig) -> None:
    if distributed.is_first() and not (workdir / FILE).exists():
        workdir.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(workdir / FILE, to_dict(tune))
