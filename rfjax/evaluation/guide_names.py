"""How a sampler's `guide` is written: RUN@STEP in a config, and a label in the keys of records."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from rfjax.config import to_dict
from rfjax.errors import ConfigError
from rfjax.inputs.paths import local_path


def parse_guide(guide: str) -> tuple[Path, int]:
    """Returns (the folder, the step) of RUN@STEP, whose form `config_rules` has checked."""
    folder, _, step = guide.rpartition("@")
    return local_path(folder, "config.evaluation.sampler.guide"), int(step)


def guide_label(guide: str) -> str:
    """Returns the text that stands for a guide in a sampler's name: the run's name, the step, and eight digits of a
    hash of the run's config, which tell apart runs of equal names in different studies. Returns "" for no guide.

    Raises `ConfigError` if there is no run in the folder.
    """
    if not guide:
        return ""
    from rfjax.training import run_folder  # needs JAX, and a sampler's name is read without it

    folder, step = parse_guide(guide)
    name, config = run_folder.read_name(folder), run_folder.read_config(folder)
    if not (name and config):
        raise ConfigError(
            f"config.evaluation.sampler.guide is {guide}, and {folder} is not a run's folder: it has no "
            f"{'run.json' if config else 'config.json'}"
        )
    digest = hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]
    name = name["run"]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '.', name)}@{step}.{digest}"
