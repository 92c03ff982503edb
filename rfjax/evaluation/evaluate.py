"""The evaluations of a run's checkpoints: which are due, and each one's record.

A run's own folder receives them. An evaluation whose record is there is not done again, so a
study that was stopped goes on with what is missing.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rfjax.data.batch import Conditions
from rfjax.data.buckets import validation_shares
from rfjax.errors import ConfigError, Preempted, RfjaxError
from rfjax.evaluation.control_measures import ranking_record
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.generate import (
    check_batch_size,
    compile_sampler,
    generator_of,
    other_prompts_of_task,
    prompt_ids,
)
from rfjax.evaluation.geneval import rules
from rfjax.evaluation.geneval.judgements import judge_rows, prompt_scores
from rfjax.evaluation.pictures import write_strip
from rfjax.evaluation.records import (
    geneval_record,
    make_record,
    read_records,
    record_key,
    record_name,
    validation_record,
    write_record,
)
from rfjax.evaluation.sampler_name import ground_truth_name
from rfjax.evaluation.schedule import Evaluation, due_at
from rfjax.evaluation.validation import compile_validation, make_validation_step, validation_loss
from rfjax.files import write_whole
from rfjax.flow.matched import own_loss_ratio
from rfjax.flow.samplers import sampling_levels
from rfjax.training.checkpoint import read_facts, spent
from rfjax.training.processes import distributed, watch
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.progress import bar, note
from rfjax.training.run import Run, open_run

RECORDS = "evaluations"
SHOWN_PER_TASK = 2  # prompts of each task in the strip of samples
CEILING_IMAGES = 8  # per prompt: ground truth costs little, and the ceiling should be sharp


class Evaluator:
    """Measures checkpoints of one run; what is compiled serves all of them."""

    def __init__(self, run: Run, programs: dict | None = None):
        self.run, self.config, self.corpus = run, run.config, run.corpus
        # Compiled programs by what they do; runs that differ in their formulation alone may be given one dict.
        self._programs: dict[object, Callable] = {} if programs is None else programs
        self._check()

    def _check(self):
        """Refuses before training what could not be measured after it."""
        evaluation = self.config.evaluation
        examples = evaluation.validation.examples
        if examples:
            self._validation_step()
            for part, count in zip(self.corpus.parts, validation_shares(self.corpus, examples), strict=True):
                if count:
                    part.captions(np.array([count - 1]), "validation")  # not all corpora have as many
        for one in due_at(self.config, self.run.name, self.config.train.steps):
            if one.sampler:
                sampling_levels(self.run.formulation, one.sampler.steps, one.sampler.sigmas)
        for name in ("geneval", "ranking"):
            settings = getattr(evaluation, name)
            if not settings.prompts_per_task:
                continue
            check_batch_size(self.run, name)
            detector_for(self.corpus)
            if name == "geneval":  # its floor needs other prompts
                other_prompts_of_task(self.corpus.evaluation_prompts(settings.prompts_per_task, settings.seed))

    def missing(self, steps: Sequence[int]) -> list[Evaluation]:
        """The evaluations that are due at these steps and have no record yet."""
        there = set(
            distributed.from_first(lambda: [record_name(record["key"]) for record in read_records(self.run.workdir)])
        )
        due = [one for step in steps for one in due_at(self.config, self.run.name, step)]
        return [one for one in due if record_name(one.key) not in there]

    def measure(
        self,
        evaluations: Sequence[Evaluation],
        params: Mapping[str, object] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measures and records. `params` by weights ("ema", "raw"); by default from checkpoints.

        `stop` is polled before each evaluation; told to stop, it raises `Preempted`, and the
        next attempt finds the rest missing.
        """
        with self.run.computing():
            for step, due in itertools.groupby(evaluations, key=lambda one: one.step):
                self._measure_checkpoint(step, list(due), params, stop)

    def _measure_checkpoint(self, step, due, params, stop):
        cost, held = spent(read_facts(self.run.workdir, step)), (None, None)
        for index, one in enumerate(due):
            if stop():
                raise Preempted(f"told to stop while measuring {self.run.workdir}; the same command goes on from there")
            if index == 0 and distributed.is_first():
                counts = Counter(f"{one.kind} of {one.weights}" for one in due)
                said = (name + (f" under {n} samplers" if n > 1 else "") for name, n in counts.items())
                note(f"{self.run.name}: evaluating step {step}: {', '.join(said)}")
            if held[0] != one.weights:  # those of one kind follow each other
                held = None  # two sets need not be there at once
                held = one.weights, params[one.weights] if params else self.run.restore_params(step, one.weights)
            with watch.doing(f"measuring step {step} ({one.kind})"):
                failure = self._recorded(getattr(self, f"_{one.kind}")(one, held[1], cost))
            if failure:
                raise RfjaxError(failure)

    def _recorded(self, write) -> str | None:
        """Calls `write`, in process 0 alone, for every file is written by one; its failure, in all of them."""
        failure = None
        try:
            if distributed.is_first():
                write()
        except Exception as error:
            if not distributed.many():
                raise
            failure = error
        return distributed.first_failure(failure)

    # Each evaluation is computed by all processes, and returns what writes its records.

    def _program(self, key, compile_it):
        if key not in self._programs:
            self._programs[key] = compile_it()
        return self._programs[key]

    def _validation_step(self):
        apply, settings, split = self.run.backbone.apply, self.config.evaluation.validation, self.run.batch_sharding
        program = self._program("validation", lambda: compile_validation(apply, settings, batch_sharding=split))
        return make_validation_step(
            apply, settings, formulation=self.run.formulation, batch_sharding=split, program=program
        )

    def _validation(self, one, params, spent):
        began = time.monotonic()
        result = validation_loss(self._validation_step(), params, self.corpus)
        extra = (
            {} if self.run.formulation.is_rectified_flow else {"own_loss_ratio": self._own_loss_ratio(result.levels)}
        )
        record = validation_record(one.key, result, seconds=time.monotonic() - began, extra=extra, **spent)
        return lambda: write_record(self.run.workdir, record)

    def _own_loss_ratio(self, levels):
        """By which each level's loss is to be multiplied to be the formulation's own."""
        return own_loss_ratio(self.run.formulation, np.array(levels)).tolist()

    def _images(self, params, sampler, settings, ids, conditions, label):
        """Images of the rows of `ids`, each from its own noise; `settings` are the evaluation's."""
        run, size = self.run, settings.batch_size
        program = self._program(
            (sampler, size),
            lambda: compile_sampler(
                run.backbone.apply, sampler, run.corpus.shapes.latents, batch_sharding=run.batch_sharding
            ),
        )
        generate = generator_of(run, sampler, size, program=program)
        with bar(len(ids), label, "image") as shown:
            latents = generate(
                params, settings.seed, ids, conditions, progress=lambda done, _: shown.update(done - shown.n)
            )
        return self.corpus.to_images(latents)

    def _prompts(self, settings):
        """(prompts, (prompt, sample) of each image, conditions of each image)."""
        prompts = self.corpus.evaluation_prompts(settings.prompts_per_task, settings.seed)
        ids = prompt_ids(len(prompts), settings.images_per_prompt)
        return prompts, ids, self.corpus.encode([row["prompt"] for row in prompts]).rows(ids[:, 0])

    def _ranking(self, one, params, spent):
        began, settings = time.monotonic(), self.config.evaluation.ranking
        prompts, ids, conditions = self._prompts(settings)
        label = f"{self.run.name} {one.key['sampler']}"
        images = self._images(params, one.sampler, settings, ids, conditions, label)

        def write():
            record = ranking_record(one.key, images, ids, prompts, self.corpus, seed=settings.seed, **spent)
            write_record(self.run.workdir, record | {"seconds": time.monotonic() - began})

        return write

    def _geneval(self, one, params, spent):
        began, settings = time.monotonic(), self.config.evaluation.geneval
        prompts, ids, conditions = self._prompts(settings)
        named = f"{self.run.name} {one.step}"
        images = self._images(params, one.sampler, settings, ids, conditions, f"{named} GenEval")
        # What a model gives that is told nothing: one image a prompt, from the same noise. Guidance
        # of the null condition against itself changes nothing, so the compiled sampler serves.
        first = ids[:, 1] == 0
        nothing = Conditions(*map(np.zeros_like, conditions.rows(first)))
        unconditional = self._images(params, one.sampler, settings, ids[first], nothing, f"{named} null condition")

        def write():
            self._write_geneval(one, prompts, ids, images, unconditional, spent, began)

        return write

    def _write_geneval(self, one, prompts, ids, images, unconditional, spent, began):
        """Detects, judges and records: the host's part, which needs no other process."""
        settings, detect = self.config.evaluation.geneval, detector_for(self.corpus)
        found = detect(images)
        own = ids[:, 0]
        judged = judge_rows(found, [prompts[index] for index in own])
        shuffled = judge_rows(found, [prompts[index] for index in other_prompts_of_task(prompts)[own]])

        null = judge_rows(detect(unconditional), prompts)

        held_out = np.array([bool(row.get("held_out")) for row in prompts])[own]
        scores = {"geneval": rules.score(judged)}
        for metric, mask in (("geneval_held_out", held_out), ("geneval_seen", ~held_out)):
            if mask.any():
                scores[metric] = rules.score([result for result, chosen in zip(judged, mask, strict=True) if chosen])
        extra = {"prompt_scores": prompt_scores(judged), "images_per_prompt": settings.images_per_prompt}

        self._write_detections(one, prompts, ids, found)
        self._write_strip(one, prompts, ids, images, spent)
        seconds = time.monotonic() - began
        for name, results in (("geneval_floor_shuffled", shuffled), ("geneval_floor_null", null)):
            record = geneval_record({**one.key, "evaluation": name}, {"geneval": rules.score(results)}, **spent)
            write_record(self.run.workdir, record)
        self._ceiling(prompts, detect)
        # Last, because its presence says that the whole evaluation is done.
        write_record(self.run.workdir, geneval_record(one.key, scores, seconds=seconds, extra=extra, **spent))

    def _ceiling(self, prompts, detect):
        """The detector's own score on ground truth: no model can be measured above it."""
        settings = self.config.evaluation.geneval
        key = record_key(
            run=self.run.name,
            step=-1,
            evaluation="geneval_ceiling",
            corpus=self.config.data.label,
            sampler=ground_truth_name((settings.prompts_per_task, CEILING_IMAGES)),
            seed=settings.seed,
        )
        if record_name(key) in {record_name(record["key"]) for record in read_records(self.run.workdir)}:
            return
        ids = prompt_ids(len(prompts), CEILING_IMAGES)
        # A seed for each image: prompts may repeat, and must not repeat their picture.
        truth = np.stack([self.corpus.render_prompt(prompts[i], n) for n, (i, _) in enumerate(ids)])
        judged = judge_rows(detect(truth), [prompts[i] for i, _ in ids])
        write_record(self.run.workdir, geneval_record(key, {"geneval": rules.score(judged)}))

    def _place(self, one):
        return f"{one.step}-{one.weights}-{one.key['sampler']}-seed{one.key['seed']}"

    def _write_detections(self, one, prompts, ids, found):
        """The prompts and what was detected, as files that `rfjax geneval` scores again."""
        folder = self.run.workdir / "geneval" / self._place(one)
        folder.mkdir(parents=True, exist_ok=True)
        rows = ({"prompt_index": int(i), "sample": int(j), **row} for (i, j), row in zip(ids, found, strict=True))
        write_whole(
            {
                folder / "metadata.jsonl": "".join(json.dumps(row) + "\n" for row in prompts),
                folder / "detections.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            }
        )

    def _write_strip(self, one, prompts, ids, images, spent):
        """A row of pictures for the report: the first image of the first prompts of each task."""
        chosen = []
        for tag in dict.fromkeys(row["tag"] for row in prompts):
            chosen += [index for index, row in enumerate(prompts) if row["tag"] == tag][:SHOWN_PER_TASK]
        first = {int(i): n for n, (i, j) in enumerate(ids) if j == 0}
        path = Path("samples") / f"{self._place(one)}.png"
        tile = write_strip(self.run.workdir / path, images[[first[index] for index in chosen]])
        shown = [prompts[index]["prompt"] for index in chosen]
        extra = {"png": str(path), "prompts": shown, "tile": tile}
        write_record(self.run.workdir, make_record({**one.key, "evaluation": "samples"}, [], extra=extra, **spent))


def evaluate_run(workdir: Path, overrides: Mapping[str, object], *, step: int | None, weights: str) -> list[dict]:
    """Measures one checkpoint with everything its config asks for, again where it has been, and
    returns the records."""
    run = open_run(workdir, overrides)
    step = run.choose_step(step)
    evaluator = Evaluator(run)
    due = due_at(run.config, run.name, step, everything=True, only=weights)
    if not due:
        raise ConfigError(
            f"the config of {workdir} asks for no evaluation: validation.examples and the prompts_per_task of "
            "geneval and ranking are 0; "
            "ask for one, as --config.evaluation.validation.examples=512"
        )
    with StopSignal() as stop:
        evaluator.measure(due, stop=stop)
    keys = [dict(one.key) for one in due]
    return distributed.from_first(lambda: [record for record in read_records(run.workdir) if record["key"] in keys])
