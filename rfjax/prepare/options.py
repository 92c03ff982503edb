"""Options that several verbs of a source share: what is read, by what, and in which parts. No numpy, for --help."""

from __future__ import annotations

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")  # of the frozen models

OPTIONS = {
    "source": dict(
        metavar="SOURCE",
        help="a folder of images, .tar files, .parquet files, or tfds:NAME; KIND:WHERE names its kind",
    ),
    "--batch-size": dict(type=int, default=32, metavar="N", help="images that the model sees at once (default 32)"),
    "--compute-dtype": dict(choices=COMPUTE_DTYPES, default="float32", help="of the models (default float32)"),
    "--device": dict(default="", help="PyTorch's name of it (default: cuda where there is one, else cpu)"),
    "--filter": dict(
        action="append",
        default=[],
        metavar="COMPARISON",
        help="keep what holds, as 'aesthetic>=5' or 'short_side>=256'; may be given several times",
    ),
    "--drop-keys": dict(metavar="FILE", help="keys of images to leave out, one a line, and after a tab perhaps why"),
    "--corrupt-limit": dict(
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of a part's images that may be corrupt; with more the command stops (default 0.1)",
    ),
    "--caption-column": dict(metavar="NAME", help="default: caption, or for tfds what it has"),
    "--synthetic-column": dict(metavar="NAME", help="captions made by a model, mixed with the others in training"),
    "--label-column": dict(metavar="NAME", help="a class to make captions of; `folder` for images sorted by class"),
    "--class-names": dict(metavar="FILE", help="names of each class, as LOC_synset_mapping.txt or JSON"),
    "--shard-size": dict(
        type=int, default=1024, metavar="N", help="images of one part; a tar is a part of its own (default 1024)"
    ),
    "--task": dict(metavar="I/N", help="make only every Nth part, from the Ith (0 to N-1), for N processes or hosts"),
    "--merge": dict(action="store_true", help="make no part; write what tells of all those that the tasks made"),
    "--threads": dict(type=int, default=0, metavar="N", help="that decode images (default: one a core)"),
}


def add_options(parser, *names: str) -> None:
    """Adds options of the table to a parser or a group of one."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])
