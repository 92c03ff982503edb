"""The sides of a preference study: folders of images, each image matched to a prompt.

There are five ways to say which prompt an image shows. If the folder has images.json, that file decides for all images.
Otherwise each image's prompt is found by the first of the other four ways that applies to the image:

    images.json                    an object {image's name: its prompt}; images that it does not name are left out
    00000/metadata.jsonl           GenEval's layout: the prompt's row beside 00000/samples/0000.png
    NAME.txt beside NAME.png       the prompt as text (`rfjax sample --layout numbered` writes it)
    PROMPT_000000.png              T2I-CompBench's names
    17.png, 00017.png, 00017-0.png the id of the prompt: the place of its row in the file of prompts, from 0

If a prompt has several images, the first by name is used. No JAX here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rfjax.compare.prompts import plain
from rfjax.compare.study_files import KEY, Prompt
from rfjax.errors import ConfigError
from rfjax.evaluation.image_folders.geneval_folder import own_row
from rfjax.inputs.json_files import read_json
from rfjax.inputs.text import read_text
from rfjax.inputs.walk import walk_files

MANIFEST = "images.json"
SAMPLES = "samples"  # in a study's folder: the images of its runs
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".tif", ".tiff")
LISTED = 5  # prompts that an error names
_NUMBERED = re.compile(r"(\d+)(?:-\d+)?")
_COMPBENCH = re.compile(r"(.+)_\d{6}")


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its name, the folder with its images, and facts about what made them."""

    name: str
    folder: Path
    facts: Mapping[str, object] = field(default_factory=dict)


def samples_folder(study: Path, run: str) -> Path:
    """Returns the folder, inside a study's folder, of the images that were sampled from a run."""
    return Path(study) / SAMPLES / run.replace("/", "-")


def originals_folder(study: Path, side: str, facts: Mapping[str, object]) -> Path:
    """Returns the folder with a side's original images, before they were encoded for pages. `facts` is the side's entry
    in the study's key. A run's images are in the study's folder; any other side is the folder that the user gave.
    Raises `ConfigError` if the folder is missing."""
    folder = samples_folder(study, side) if "run" in facts else Path(str(facts.get("given", "")))
    if not folder.is_dir():
        where = f"correct the side's `given` in {Path(study) / KEY}"
        remedy = "make the study again into the same folder" if "run" in facts else f"put it back, or {where}"
        raise ConfigError(f"no folder at {folder}, where the images of {side} were; {remedy}")
    return folder


def find_images(side: Side, prompts: Sequence[Prompt]) -> tuple[dict[int, Path], list[str]]:
    """Finds a side's image of each prompt. Returns ({prompt's id: image}, lines on the images that are not used).

    Raises `ConfigError` if the side's folder is missing, has no images, or lacks an image of some prompt.
    """
    if not side.folder.is_dir():
        raise ConfigError(f"no folder at {side.folder}; give a run's folder, or a folder of images")
    walk = walk_files(side.folder, SUFFIXES)
    names = [name for name in walk.names if PurePosixPath(name).name != "grid.png"]  # GenEval's generator writes it
    if not names:
        raise ConfigError(f"{side.folder} has no images ({', '.join(SUFFIXES)}) and is no run; give a folder that has")
    by_text, by_id = {prompt.prompt: prompt.id for prompt in prompts}, {prompt.id for prompt in prompts}
    found: dict[int, Path] = {}
    others = more = 0
    for name, given in _prompts_of(side.folder, names):
        place = by_text.get(given) if isinstance(given, str) else given if given in by_id else None
        if place is None:
            others += 1
        elif place in found:
            more += 1
        else:
            found[place] = side.folder / name
    missing = [prompt for prompt in prompts if prompt.id not in found]
    if missing:
        named = ", ".join(f"{prompt.id} ({prompt.prompt[:40]!r})" for prompt in missing[:LISTED])
        raise ConfigError(
            f"{side.folder} has no image of {len(missing)} of the {len(prompts)} prompts: {named}"
            f"{', ...' if len(missing) > LISTED else ''}; add them, or give a file of the prompts that all sides have"
        )
    lines = walk.describe_passed_over()
    lines += [f"{others:,} images of other prompts"] * bool(others)
    lines += [f"{more:,} further images of the same prompts; the first of each by name is used"] * bool(more)
    return found, lines


def _prompts_of(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str | int | None]]:
    """Yields (image's name, its prompt) in the order of `names`. A prompt is its text or its id, or None if unknown."""
    if (folder / MANIFEST).is_file():
        remedy = 'it must be an object {"image.png": "its prompt"}'
        given = read_json(folder / MANIFEST, dict[str, str], remedy=remedy, error=ConfigError)
        if gone := sorted(set(given) - set(names)):
            raise ConfigError(f"{folder / MANIFEST} names {gone[0]!r}, and there is no such image; restore it")
        yield from ((name, plain(given[name]) if name in given else None) for name in names)
        return
    rows: dict[Path, str] = {}
    for name in names:
        path = folder / name
        place = path.parent.parent / "metadata.jsonl"
        if path.parent.name == "samples" and place.is_file():
            if place not in rows:
                rows[place] = plain(own_row(place.parent)["prompt"])
            yield name, rows[place]
        elif path.with_suffix(".txt").is_file():
            yield name, plain(read_text(path.with_suffix(".txt"), "the prompt"))
        elif match := _COMPBENCH.fullmatch(path.stem):
            yield name, plain(match[1])
        else:
            match = _NUMBERED.fullmatch(path.stem)
            yield name, int(match[1]) if match else None
