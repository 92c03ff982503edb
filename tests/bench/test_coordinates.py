"""The coordinate check: slopes by hand, and a planted mistake in one leaf's rule, found by name."""

import json

import pytest

from rfjax.bench import coordinates
from rfjax.cli import main
from rfjax.config import apply_overrides, from_dict
from rfjax.errors import ConfigError
from rfjax.models import parametrization

TINY = {
    "model": {"backbone": "dit_class", "depth": 1, "hidden": 32, "head_size": 16, "patch_size": 2},
    "data": {"corpus": "random", "image_size": 4, "context_tokens": 2, "context_size": 8, "pooled_size": 8},
    "train": {"batch_size": 16, "learning_rate": 2.0**-9, "weight_decay": 0.0},
}
MUP = {"model.parametrization": "mup", "model.base_width": 32, "model.balanced_width": 64}


def test_slopes_are_those_of_the_logarithms_and_the_steep_are_named():
    """Catches a slope in sizes for one in their logarithms, a mean over seeds of the slope's sign, and a zero taken for
    flat."""
    sizes = (64, 128, 512)
    values = [
        {"flat": [2.0, 8.0], "grows": [size**0.5, 4 * size**0.5], "falls": [1 / size] * 2, "zero": [0.0, 1.0]}
        for size in sizes
    ]
    found = coordinates.slopes(sizes, values)
    assert [found[name] for name in ("flat", "grows", "falls")] == pytest.approx([0.0, 0.5, -1.0])
    assert [name for name, _ in coordinates.judge(found)] == ["zero", "falls", "grows"]
    assert coordinates.judge({"a": 0.149, "b": -0.151}) == [("b", -0.151)]


@pytest.fixture(scope="module")
def measured(quick_compilation):
    def measure(**changes):
        config = apply_overrides(from_dict(TINY), MUP | changes)
        return coordinates.measure_coordinates(
            config, widths=(32, 128), depths=(), seeds=2, steps=12, say=lambda text: None
        )

    return measure


@pytest.mark.full
def test_a_mistake_in_one_leafs_rule_is_caught_by_name(measured, monkeypatch):
    """The rate of one hidden kernel that does not fall with width: that kernel alone is named, and what it feeds is not
    flat. Without the mistake nothing is named."""
    right = measured()["axes"]["width"]["steps"]["12"]
    assert not right["suspects"]
    rows = list(parametrization.LEAVES)
    rows.insert(0, (r"/mlp_in/kernel$", "input", lambda shape, v: 1.0))
    monkeypatch.setattr(parametrization, "LEAVES", tuple(rows))
    record = measured()
    wrong = record["axes"]["width"]["steps"]["12"]
    assert [name for name, _ in wrong["suspects"]] == ["blocks/tokens/mlp_in/kernel"]
    assert wrong["steep"][0][0] == "blocks/tokens/mlp_out" and not record["flat"]["width"]
    assert any("blocks/tokens/mlp_in/kernel +1." in line for line in coordinates.lines(record))


def test_what_cannot_be_checked_is_refused(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text(f"def get_config():\n    return {TINY!r}\n")
    base = ["bench", f"--config={config}", "--coordinates"]
    mup = [f"--config.{key}={value}" for key, value in MUP.items()]
    for given, said in {
        (*base, "--widths=32"): "--widths is 32 and --depths is empty; a slope needs two different values",
        (*base, "--widths=32,a"): "--widths is '32,a'; it must be whole numbers",
        (
            *base,
            "--widths=32,64",
            "--steps=5",
        ): "--steps is 5; it must be at least 10, because in the first steps only the last layer moves",
        (*base, "--widths=16,32", *mup): "config.model.base_width is 32 and the hidden size",
        ("bench", f"--config={config}", "--widths=32,64"): "--widths is read with --coordinates alone",
        (*base, "--sample"): "--sample and --coordinates are two different measurements",
    }.items():
        assert main(list(given)) == 2
        assert said in capsys.readouterr().err


@pytest.mark.full
def test_the_command_writes_its_verdict_and_its_picture(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text(f"def get_config():\n    return {TINY!r}\n")
    out, figure = tmp_path / "record.json", tmp_path / "sizes.png"
    command = ["bench", f"--config={config}", "--coordinates", "--widths=32,64", "--depths=1,2", "--steps=10"]
    for _ in range(2):  # its own files are written again
        assert main([*command, "--seeds=1", f"--json={out}", f"--figure={figure}"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert set(record["axes"]) == {"width", "depth"} and "verdict for standard in width" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_size_that_the_network_cannot_have_is_refused():
    config = apply_overrides(from_dict(TINY), {})
    with pytest.raises(ConfigError, match="not divisible by config.model.head_size"):
        coordinates.of_size(config, width=40, steps=10)
