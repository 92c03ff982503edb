"""Pairs that people voted on, as examples of Diffusion-DPO in place of a round's images.

The images are the originals that the compared runs made, not the WebP copies on the raters' pages. Each original is
checked against its blind id, a hash of its pixels. Pairs of prompts that are held out of tuning are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from rfjax.compare import pictures
from rfjax.compare.design import image_id
from rfjax.compare.sides import originals_folder
from rfjax.compare.study_files import KEY, read_key
from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json
from rfjax.training.run import Run
from rfjax.tune.config import TuneConfig
from rfjax.tune.methods import Pairs
from rfjax.votes.reading import read_votes, vote_files
from rfjax.votes.study import KeyedStudy, read_keyed_study
from rfjax.votes.winners import Won, find_winners

FACTS = "voted_pairs"  # the key in run.json
AT_A_TIME = 64  # images that are encoded to latents at a time


@dataclass(frozen=True)
class VotedPairs:
    """The pairs of a study to learn from: each pair's prompt, and in `files` (the winner's file, the loser's file)."""

    study: str
    question: str
    prompts: tuple[str, ...]
    files: tuple[tuple[Path, Path], ...]
    sha256: str  # of the prompts and of the images' pixels
    lines: tuple[str, ...]  # for a console: how many pairs there are, and which were left out

    @property
    def facts(self) -> dict[str, object]:
        """The facts that run.json keeps about the pairs (study, question, number, hash), so that a tuning is not
        resumed with other pairs."""
        about = {"study": self.study, "question": self.question, "pairs": len(self.prompts), "sha256": self.sha256}
        return {FACTS: about}


def read_pairs(folder: Path, question: str, held_out: Collection[str]) -> VotedPairs:
    """Reads a preference study with its key, votes and images. Returns the pairs in which one image won.

    Pairs whose prompt is in `held_out` are left out. Raises `ConfigError` for a damaged study or votes, for an image
    that is missing or has changed since the study was made, and if no pair is left.
    """
    study = read_keyed_study(folder)
    found = find_winners(study, read_votes(study, vote_files(folder)).votes, question)
    kept = [won for won in found.won if study.prompts[won.prompt].prompt not in held_out]
    if not kept:
        raise ConfigError(
            f"{folder} has no pair to learn from: {found.lines()[0]}, {len(found.won)} pairs of held-out prompts; "
            "collect more votes, or lower config.held_out_prompts"
        )
    files, hashes, places = [], [], _files(study)
    for won in kept:
        looked = [_original(study, places, won, image) for image in (won.winner, won.loser)]
        files.append(tuple(one.path for one in looked))
        hashes.append((study.prompts[won.prompt].prompt, *(one.sha256 for one in looked)))
    lines = [f"votes on {question} in {folder}: {line}" for line in found.lines()]
    lines += [f"{len(found.won) - len(kept):,} pairs of held-out prompts left out"] * (len(kept) < len(found.won))
    lines.append(f"{len(kept):,} pairs of {len({won.prompt for won in kept}):,} prompts to learn from")
    lines += _encoded(study, places, files)
    return VotedPairs(
        study.id,
        question,
        tuple(prompt for prompt, *_ in hashes),
        tuple(files),
        hashlib.sha256(repr(hashes).encode()).hexdigest()[:16],
        tuple(lines),
    )


def _files(study: KeyedStudy) -> dict[str, tuple[str, Path]]:
    """Returns {image's id: (side, file of the original image)} for all images of the study except noise."""
    key = read_key(study.folder, study.asked)
    folders = {
        blind: originals_folder(study.folder, name, study.facts.get(name, {})) for blind, name in key.runs.items()
    }
    made = ((image, one) for image, one in key.images.items() if one.run is not None)
    return {image: (key.runs[one.run], folders[one.run] / one.source) for image, one in made}


def _original(study: KeyedStudy, places, won: Won, image: str) -> pictures.Picture:
    side, path = places[image]
    picture = pictures.look_at(path, path.name)
    if image_id(study.id, side, won.prompt, picture.sha256) != image:
        raise ConfigError(
            f"{path} is not the image that people voted on: its pixels have changed since {study.folder} was made; "
            f"restore it, or correct the side's `given` in {study.folder / KEY}"
        )
    return picture


def _encoded(study: KeyedStudy, places, files) -> list[str]:
    """Returns a line that says where the original images are, if raters saw them in a lossy encoding; else no line."""
    quality, below = (study.asked.webp.get(name) for name in ("quality", "lossless_below"))
    sizes = {pictures.look_at(path, path.name).size for path in {files[0][0], files[-1][1]}}
    if quality is None or below is None or all(max(size) < below for size in sizes):
        return []
    folders = sorted({str(path.parent) for _, path in places.values()})
    return [f"raters saw WebP of quality {quality}; the images to learn from are the originals in {', '.join(folders)}"]


def to_examples(voted: VotedPairs, run: Run) -> Pairs:
    """The pairs as latents and text features, in host memory.

    The run's corpus makes the latents: by its autoencoder, or by scaling the pixels if latents are pixels. Raises
    `ConfigError` for images of another size than the run's.
    """
    shapes, paths = run.corpus.shapes, [path for two in voted.files for path in two]
    latents = np.empty((len(paths), *shapes.latents), np.float32)
    for start in range(0, len(paths), AT_A_TIME):
        some = paths[start : start + AT_A_TIME]
        images = [np.asarray(pictures.read(path), np.float32) / 255.0 for path in some]
        for path, image in zip(some, images, strict=True):
            if image.shape != images[0].shape:
                raise ConfigError(_wrong_size(path, image, f"and {some[0]} has another size"))
        made = run.corpus.to_latents(np.stack(images))
        if made.shape[1:] != shapes.latents:
            said = f"its latents are {made.shape[1:]}, and the run's are {shapes.latents}"
            raise ConfigError(_wrong_size(some[0], images[0], said))
        latents[start : start + AT_A_TIME] = made
    distinct = list(dict.fromkeys(voted.prompts))
    rows = np.array([distinct.index(prompt) for prompt in voted.prompts])
    conditions = run.corpus.encode(distinct).rows(rows)
    ids = np.full((len(rows), 2, 2), -1, np.int32)  # nobody knows the noise that made the images
    return Pairs(latents.reshape(len(rows), 2, *shapes.latents), *conditions, ids)


def check_same(workdir: Path, voted: VotedPairs) -> None:
    """Raises `ConfigError` if the tuning in a folder was begun with other pairs."""
    record = read_json(workdir / "run.json", dict[str, object]) if (workdir / "run.json").is_file() else {}
    before, now = record.get(FACTS), voted.facts[FACTS]
    if record and before != now:
        differ = [name for name in now if (before or {}).get(name) != now[name]]
        raise ConfigError(
            f"{workdir} was begun with other pairs of votes: they differ in {', '.join(differ)}; put the votes and "
            "images back as they were, or use another --workdir"
        )


def _wrong_size(path, image, said):
    height, width = image.shape[:2]
    return f"the image {path} is {width} x {height}, {said}; compare images of the size that the run makes"


class VotedExamples:
    """The same pairs in every round. Steps go through all pairs in a shuffled order, which changes from one pass to
    the next."""

    def __init__(self, tune: TuneConfig, voted: VotedPairs, pairs: Pairs):
        self._tune, self._pairs, self.facts = tune, pairs, voted.facts

    def examples(self, params: Callable, number: int) -> Pairs:
        return self._pairs

    def rows(self, examples: Pairs, step: int) -> Int[np.ndarray, " batch"]:
        """Returns the indices of the pairs that a step takes."""
        return rows_of_pass(self._tune, len(examples.latents), step)


def rows_of_pass(tune: TuneConfig, examples: int, step: int) -> Int[np.ndarray, " batch"]:
    """The indices of the examples that a step takes. Passes over all examples follow each other, each in an order of
    its own that depends on (seed, pass). Step n takes the `batch_size` examples from number n * batch_size on, counted
    over all passes, so a batch may contain the end of one pass and the beginning of the next."""
    places = np.arange(step * tune.batch_size, (step + 1) * tune.batch_size)
    passes, within = np.divmod(places, examples)
    orders = {number: np.random.default_rng((tune.seed, number)).permutation(examples) for number in set(passes)}
    return np.array([orders[number][place] for number, place in zip(passes, within, strict=True)])
