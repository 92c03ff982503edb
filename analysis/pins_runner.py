"""Runs the command of a checkout, and gathers what is pinned of the files that it writes."""

import ast
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from safetensors.numpy import load_file

LONGEST = 16  # a longer list is kept as its checksum
# Clocks, what follows from them, and the code's own checksum.
CLOCKS = {"seconds", "train_seconds", "evaluation_seconds", "time", "code_hash", "table_sha256", "made_of"}
CLOCKS |= {"steps_per_second", "images_per_second", "flops_per_second", "mfu"}
TIMES = r" \(about [^)]* left\)|\b\d+ (s|min \d\d s|h \d\d min)\b"  # as a study and its report write them
CHECKSUM = r"\b[0-9a-f]{16}\b"  # in a report: of the code, and of a table that has clocks
WITH_CLOCKS = {"long.csv", "wide.csv", "runs.csv"}  # table.json has their checksums; their columns are pinned


class Ran(NamedTuple):
    status: int
    out: str
    err: str


class Failed(Exception):
    """A command that a pin needs did not succeed."""


class Runner:
    """Runs the command of one checkout, with a temporary folder for what it writes."""

    def __init__(self, checkout: Path, folder: Path):
        self.checkout, self.folder = checkout.resolve(), folder.resolve()
        self._made: dict[str, Path] = {}
        found = Path(self._python("-c", "import rfjax; print(rfjax.__file__)").out.strip()).resolve()
        if self.checkout not in found.parents:
            raise Failed(f"{found} would be imported instead of the package in {self.checkout}")

    def rfjax(self, *words: str, devices: int = 1) -> Ran:
        """Runs `rfjax WORDS` in the checkout, on the CPU."""
        return self._python("-m", "rfjax", *words, devices=devices)

    def must(self, *words: str, devices: int = 1) -> Ran:
        """Runs `rfjax WORDS`, which must succeed."""
        ran = self.rfjax(*words, devices=devices)
        if ran.status:
            raise Failed(f"rfjax {' '.join(words)} gave {ran.status}: {ran.err[-1500:]}")
        return ran

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Returns the path `name` in the temporary folder. The first call for a name writes it, by `make(path)`."""
        if name not in self._made:
            make(self.folder / name)
            self._made[name] = self.folder / name
        return self._made[name]

    def plain(self, value: object) -> object:
        """Returns the value without times and paths of this run, and with long lists as their checksums."""
        if isinstance(value, Mapping):
            return {key: self.plain(item) for key, item in value.items() if not _is_clock(key, item)}
        if isinstance(value, list):
            items = [self.plain(item) for item in value]
            return items if len(items) <= LONGEST else f"{len(items)} items, {digest(json.dumps(items))}"
        return self.text(value) if isinstance(value, str) else value

    def text(self, words: str) -> str:
        """Returns the text with the paths of this run's folder and checkout replaced by {tmp} and {checkout}."""
        return words.replace(str(self.folder), "{tmp}").replace(str(self.checkout), "{checkout}")

    def _python(self, *words: str, devices: int = 1) -> Ran:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "RFJAX_"))}
        environ |= {"PYTHONPATH": str(self.checkout), "JAX_PLATFORMS": "cpu"}
        if devices > 1:
            environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        ran = subprocess.run(
            [sys.executable, "-P", *words],
            cwd=self.checkout,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


def _is_clock(key: str, value: object) -> bool:
    return key in CLOCKS or (key in WITH_CLOCKS and isinstance(value, str))


def digest(content: str | bytes) -> str:
    """Gives the start of the content's SHA-256."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:32]


def without_times(words: str) -> str:
    """Gives a study's or its report's words without durations and checksums (of the code, and of a table)."""
    return re.sub(f"{TIMES}|{CHECKSUM}", "", words)


def tensors(path: Path) -> dict[str, str]:
    """Gives the type, shape and checksum of each tensor of a safetensors file."""
    arrays = load_file(path).items()
    return {name: f"{array.dtype} {list(array.shape)} {digest(array.tobytes())}" for name, array in sorted(arrays)}


def pixels(path: Path) -> str:
    """Gives the mode, size and checksum of a decoded image."""
    with Image.open(path) as image:
        return f"{image.mode} {image.size} {digest(image.tobytes())}"


def code(path: Path) -> str:
    """Gives the checksum of a module's code, without docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                node.body = body[1:]
    return digest(ast.dump(tree))


def columns(path: Path) -> dict[str, object]:
    """Gives the header of a CSV file, its number of rows, and the checksum of each column that holds no clock time."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    cells = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    sums = {name: digest(json.dumps(column)) for name, column in cells.items() if name not in CLOCKS}
    return {"header": ", ".join(header), "rows": len(rows), "columns": sums}


def fact(runner: Runner, path: Path) -> object:
    """Gives what is pinned of a file; the suffix of its name decides how the file is read."""
    match path.suffix:
        case ".json":
            return runner.plain(json.loads(path.read_text()))
        case ".jsonl":
            return [runner.plain(json.loads(line)) for line in path.read_text().splitlines()]
        case ".csv":
            return columns(path)
        case ".png":
            return pixels(path)
        case ".py":
            return code(path)
        case ".html":
            return digest(without_times(runner.text(path.read_text())))
    return digest(path.read_bytes())


def files(runner: Runner, folder: Path, leave: Sequence[str] = ()) -> dict[str, object]:
    """Gives what is pinned of each file in a folder, except files in its subfolders `leave`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in paths}
    return {str(name): fact(runner, path) for name, path in names.items() if name.parts[0] not in leave}
