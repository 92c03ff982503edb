"""Paths that users give: what is expanded and what is refused before anything is written."""

from pathlib import Path

import pytest

from rfjax.errors import ConfigError
from rfjax.inputs.paths import local_path


@pytest.mark.parametrize(
    "text", ["gs://bucket/x", "az:/x", "s3://b", "hf://datasets/x", "file:///tmp/x", Path("gs://b")]
)
def test_a_url_is_refused(text):
    with pytest.raises(ConfigError, match=r"--out is .*a URL.*mount it"):
        local_path(text, "--out")


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_path_is_refused(text):
    with pytest.raises(ConfigError, match="--out is empty.*shell variable"):
        local_path(text, "--out")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/data", "--out") == tmp_path / "data"
    with pytest.raises(ConfigError, match="no user"):
        local_path("~nobody-of-that-name/x", "--out")


@pytest.mark.parametrize("text", ["data", "./a:b", "/x/y z", "depth1:steps2", "C:/x"])
def test_other_names_are_paths(text):
    assert local_path(text, "--out") == Path(text)
