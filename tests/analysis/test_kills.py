"""Every study that is killed has a config that it can start with."""

import sys
from pathlib import Path

import pytest

from rfjax.study.study import load_study

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
import kill_kinds  # noqa: E402

STUDIES = {"base": kill_kinds.BASE} | {
    name: kind.config for name, kind in kill_kinds.KINDS.items() if kind.config and not kind.base
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_that_is_killed_is_valid(name, tmp_path):
    (tmp_path / "killed.py").write_text(STUDIES[name])
    load_study(tmp_path / "killed.py")
