"""GenEval's folder of images, as the official generator writes it and the official scorer reads it. No torch here.

    FOLDER/00000/metadata.jsonl     the prompt's row, one JSON object
    FOLDER/00000/samples/0000.png   the prompt's images, 0001.png, ...

A prompt's folder is named by digits: the 0-based line of the metadata. Other files, such as `grid.png`, are ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.files import read_metadata
from rfjax.files import write_whole

# The hash of prompts/evaluation_metadata.jsonl of djghosh13/geneval: 553 rows, each as json.dumps writes it.
OFFICIAL_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
OFFICIAL_ROWS, OFFICIAL_IMAGES = 553, 4
GENERATION = "generation.json"  # the settings of `rfjax sample --prompts`, if it made the images
IMAGE = re.compile(r"(\d+)\.png")


class Sample(NamedTuple):
    prompt_index: int
    sample: int
    path: Path
    name: str  # relative to the folder, with / between


class GenEvalFolder(NamedTuple):
    """A folder of images in GenEval's layout. `rows` are the prompts' metadata rows by prompt index; `samples` are the
    images in the order of prompts and images."""

    rows: dict[int, dict]
    samples: list[Sample]
    sha256: str  # of the metadata file, or of the rows written one a line
    left_out: dict[str, tuple[str, ...]]  # names of files and folders that were not read, by reason

    @property
    def official(self) -> bool:
        """Whether the prompts are the official prompts, all 553."""
        return self.sha256 == OFFICIAL_SHA256


def read(folder: str | os.PathLike, metadata: str | os.PathLike | None = None) -> GenEvalFolder:
    """Reads the prompts and images of a folder.

    With a `metadata` file, all rows of the file are the prompts, and the row in each prompt's folder must equal the
    file's row of that number. Raises `ConfigError`, naming what is missing, given twice, or different from the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder at {folder}; give the one with 00000/metadata.jsonl and 00000/samples/0000.png")
    given = read_metadata(metadata) if metadata is not None else None
    rows: dict[int, dict] = {}
    samples, names, left_out = [], {}, {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        if not re.fullmatch(r"[0-9]+", path.name):
            left_out.setdefault("folders whose name is no prompt's number", []).append(f"{path.name}/")
            continue
        index = int(path.name)
        if index in rows:
            raise ConfigError(f"{path} and {folder / names[index]} are both of prompt {index}; keep one")
        rows[index], names[index] = own_row(path), path.name
        if given is not None:
            _check(path, index, rows[index], given, metadata)
        samples += _samples(path, index, left_out)
    if not samples:
        raise ConfigError(
            f"{folder} has no images in GenEval's layout; give a folder with 00000/metadata.jsonl and "
            "00000/samples/0000.png"
        )
    if given is None:
        digest = hashlib.sha256("".join(json.dumps(rows[index]) + "\n" for index in sorted(rows)).encode()).hexdigest()
    else:
        rows, digest = dict(enumerate(given)), hashlib.sha256(Path(metadata).read_bytes()).hexdigest()
    return GenEvalFolder(rows, sorted(samples), digest, {reason: tuple(some) for reason, some in left_out.items()})


def own_row(path: Path) -> dict:
    """The prompt's row in a prompt's folder. Raises `ConfigError` if there is no row, or more than one."""
    file = path / "metadata.jsonl"
    if not file.is_file():
        raise ConfigError(f"{path} has no metadata.jsonl; write the prompt's row there")
    rows = read_metadata(file)
    if len(rows) != 1:
        raise ConfigError(f"{file} has {len(rows)} rows; it must have one, the prompt's row")
    return rows[0]


def _check(path, index, row, given, metadata):
    if index >= len(given):
        raise ConfigError(f"{path} is beyond the {len(given)} rows of {metadata}; give the metadata of these images")
    if row != given[index]:
        raise ConfigError(
            f"{path / 'metadata.jsonl'} says {row.get('prompt')!r}, and row {index} of {metadata} "
            f"{given[index]['prompt']!r}; give the metadata of these images"
        )


def _samples(path, index, left_out):
    found: dict[int, Sample] = {}
    folder = path / "samples"
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = IMAGE.fullmatch(file.name) if file.is_file() else None
        if match is None:
            reason = "files in samples/ whose name is no image's number"
            left_out.setdefault(reason, []).append(f"{path.name}/samples/{file.name}")
        else:
            number = int(match[1])
            if number in found:
                raise ConfigError(f"{file} and {found[number].path} are both image {number} of a prompt; keep one")
            found[number] = Sample(index, number, file, f"{path.name}/samples/{file.name}")
    return list(found.values())


def image_path(folder: str | os.PathLike, index: int, sample: int) -> Path:
    """The path of a prompt's image."""
    return Path(folder) / f"{index:05d}" / "samples" / f"{sample:04d}.png"


def write(folder: str | os.PathLike, rows: Sequence[Mapping], images: Iterable[tuple[int, int, bytes]]) -> None:
    """Writes PNGs, given as (prompt index, sample, content), and each prompt's row beside them.

    An image that exists is replaced; a metadata.jsonl that exists stays. Raises `RfjaxError` if a file cannot be
    written.
    """
    for index, sample, png in images:
        contents = {image_path(folder, index, sample): png}
        place = Path(folder) / f"{index:05d}"
        if not (place / "metadata.jsonl").exists():
            contents[place / "metadata.jsonl"] = json.dumps(rows[index]) + "\n"
        write_whole(contents)
