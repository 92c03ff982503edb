"""Options of `prepare`, `recaption` and `duplicates`, and checks of values. Imports no numpy, so --help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path, local_text
from rfjax.prepare.sources import SOURCES

FLOATS = ("float16", "float32")  # types of stored numbers
TEXT_PRECISIONS = (*FLOATS, "int8")  # of stored contexts: `rfjax.data.prepared.text_precision`
DTYPES = ("float32", "bfloat16", "float16")


def source_text(text: str, option: str = "SOURCE") -> str:
    """Checks a source, `KIND:WHERE` or a path of this machine, for `open_source`; returns it with `~` expanded."""
    kind, colon, where = text.partition(":")
    return f"{kind}:{local_text(where, option)}" if kind in SOURCES and colon else local_text(text, option)


def source_paths(text: str) -> list[Path]:
    """Returns the file or folder that a source names, in a list; [] if there is none, as for a TFDS data set."""
    kind, colon, where = text.partition(":")
    path = Path(where if kind in SOURCES and colon else text)
    return [path] if path.exists() else []


OPTIONS = {
    "source": dict(
        metavar="SOURCE",
        type=source_text,
        help="a folder of images, .tar or .parquet files, or tfds:NAME, or KIND:WHERE",
    ),
    "--batch-size": dict(type=int, default=32, metavar="N", help="images that the model sees at once (default 32)"),
    "--compute-dtype": dict(choices=DTYPES, default="float32", help="type of the models' numbers (default float32)"),
    "--device": dict(metavar="NAME", help="the device, as PyTorch names it (default: cuda if there is one, else cpu)"),
    "--filter": dict(
        action="append",
        default=[],
        metavar="TEST",
        help="keep only images that pass, such as aesthetic>=5; may be repeated",
    ),
    "--drop-keys": dict(
        metavar="FILE",
        type=as_path("--drop-keys"),
        help="keys of images to leave out, one a line; a reason may follow a tab",
    ),
    "--corrupt-limit": dict(
        type=float,
        default=0.1,
        metavar="SHARE",
        help="largest share of corrupt images in a shard (default 0.1); ten images are always allowed",
    ),
    "--frames": dict(
        type=int, metavar="N", help="read clips of N frames from video, GIF and animated WebP, instead of images"
    ),
    "--fps": dict(metavar="RATE", help="frames a second, such as 8 or 30000/1001 (default: the pictures as stored)"),
    "--clips": dict(
        type=int,
        metavar="N",
        help="at most so many clips of a file, one after the other from its beginning (default 1)",
    ),
    "--caption-column": dict(
        metavar="NAME", help="column of captions (default: caption; in tables also captions, text or prompt)"
    ),
    "--synthetic-column": dict(metavar="NAME", help="column of captions made by a model, which training mixes in"),
    "--label-column": dict(metavar="NAME", help="column of classes, for captions; folder: the image's folder's name"),
    "--class-names": dict(
        metavar="FILE", type=as_path("--class-names"), help="names of each class: LOC_synset_mapping.txt, or JSON"
    ),
    "--shard-size": dict(
        type=int, default=1024, metavar="N", help="images of a part; each tar is a part (default 1024)"
    ),
    "--task": dict(metavar="I/N", help="make every Nth part from the Ith on (0 to N-1), for N processes or hosts"),
    "--merge": dict(action="store_true", help="make no part; write the file that describes the parts of all tasks"),
    "--threads": dict(type=int, default=0, metavar="N", help="threads that decode images (default: one a core)"),
}


def add_options(parser, *names: str) -> None:
    """Adds the named options of `OPTIONS` to a parser or to one of its groups."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])


def check_range(options: object, names: Sequence[str], low: int, high: int | None = None) -> None:
    """Raises `ConfigError` if one of the attributes `names` of `options` is a number outside `low` to `high`. An
    attribute that is None is not checked."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not (low <= value if high is None else low <= value <= high):
            bounds = f"be at least {low}" if high is None else f"lie in [{low}, {high}]"
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must {bounds}")
