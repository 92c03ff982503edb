"""Finds by name what is shipped with the code: configs, sites and the templates of scripts. No JAX here.

In a checkout they are in the folders `configs/` and `launch/` beside the package. In a wheel they are inside the
package (`setup.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.inputs.files import why_not_plain

_PACKAGE = Path(__file__).parent
TUNINGS = ("preference",)  # shipped configs of `rfjax tune`, which no run or study takes


def list_configs() -> dict[str, Path]:
    """Returns {name: path} of the shipped configs of runs and studies: `shapes`, `sd3_depth` and so on."""
    return {name: path for name, path in _list("configs").items() if name not in TUNINGS}


def list_tunings() -> dict[str, Path]:
    """Returns {name: path} of the shipped configs of `rfjax tune`."""
    return {name: path for name, path in _list("configs").items() if name in TUNINGS}


def list_sites() -> dict[str, Path]:
    """Returns {name: path} of the shipped sites of `rfjax launch`."""
    return _list("launch")


def find_config(text: str) -> Path:
    """Returns the config file that `--config` names: a path, or the name of a shipped config.

    A text that has a slash, or ends in `.py` or `.json`, is a path. Any other text is a shipped name, whatever files
    the current folder has. `name.py` means the shipped `name` if there is no such file. If nothing is found, raises
    `ConfigError` with the nearest name, if one is near, and all shipped names.
    """
    return _find("config", text, list_configs() | list_tunings())


def find_site(text: str) -> Path:
    """Returns the site file that `--site` names, by the rules of `find_config`."""
    return _find("site", text, list_sites())


def find_template(name: str) -> Path:
    """Returns the path of a script's template that `rfjax launch` fills, such as `slurm_points.sh`."""
    return _folder("launch") / name


def _folder(name: str) -> Path:
    inside = _PACKAGE / "_shipped" / name  # in a wheel
    return inside if inside.is_dir() else _PACKAGE.parent / name


def _list(folder: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted(_folder(folder).glob("*.py"))}


def _find(kind: str, text: str, shipped: Mapping[str, Path]) -> Path:
    path, has_folder = Path(text), "/" in text
    is_path = has_folder or text.endswith((".py", ".json"))
    if is_path and path.is_file():
        return path
    why = why_not_plain(path) if is_path else ""
    if why not in ("", "not there"):
        raise ConfigError(f"the {kind} file {text} cannot be read: it is {why}; give a Python file with get_{kind}()")
    name = text.removesuffix(".py")
    if name in shipped:
        return shipped[name]
    beside = {other.stem: str(other) for other in path.parent.glob("*.py")}
    names = {} if has_folder else dict(zip(shipped, shipped, strict=True))
    known = names | beside if is_path else beside | names
    near = [known[match] for match in difflib.get_close_matches(path.stem, known, 1)]
    what = f"no {kind} file at {text}" if is_path else f"no {kind} {text!r} is shipped, and a path ends in .py"
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ConfigError(f"{what}{hint} Shipped are {', '.join(shipped)}")
