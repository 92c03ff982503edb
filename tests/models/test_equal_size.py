"""Backbones of equal size: the nearest hidden size, found again by trying all, and the study that uses them."""

import dataclasses
from pathlib import Path

import pytest

from rfjax.config import ModelConfig, apply_overrides, from_dict
from rfjax.config_files import load_file
from rfjax.data.batch import BatchShapes
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError
from rfjax.models.equal_size import MEASURES, match_size, parameters
from rfjax.models.flops import forward_flops

SHAPES = BatchShapes(latents=(16, 16, 3), context=(16, 96), pooled=96, encoders=())
REFERENCE = ModelConfig(depth=3, hidden=128, head_size=16, patch_size=4)
DIFFERENCES = {
    "mmdit3": {"weight_sets": 3, "first_text_tokens": 8},
    "dit": {"backbone": "dit"},
    "dit_class": {"backbone": "dit_class"},
    "crossdit": {"backbone": "crossdit"},
    "uvit": {"backbone": "uvit"},
}


def ratio(size, target):
    return max(size / target, target / size)


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("hold", ("head_size", "heads"))
def test_no_other_hidden_size_is_nearer_in_flops(name, hold):
    """All multiples tried. Catches a search that stops on the wrong side, and a target that is not the reference's."""
    found = match_size(REFERENCE, SHAPES, by="flops", hold=hold, **DIFFERENCES[name])
    target = forward_flops(REFERENCE, SHAPES)
    step = {"head_size": 16, "heads": 8}[hold]
    sizes = {
        hidden: forward_flops(dataclasses.replace(REFERENCE, hidden=hidden, **DIFFERENCES[name]), SHAPES)
        for hidden in range(step, 1025, step)
    }
    assert found.model.width == min(sizes, key=lambda hidden: ratio(sizes[hidden], target))
    assert (found.size, found.reference) == (sizes[found.model.width], target)
    assert found.mismatch == pytest.approx(found.size / target - 1) and abs(found.mismatch) < 0.25
    assert found.model.depth == 3
    assert getattr(found.model, hold) == getattr(REFERENCE, hold) and not found.model.width % found.model.head_size


def test_by_parameters_the_neighbours_are_farther():
    """A DiT as large as an MM-DiT is wider, as it has one weight set where MM-DiT has two."""
    found = match_size(REFERENCE, SHAPES, by="parameters", backbone="dit")
    target = parameters(REFERENCE, SHAPES)
    assert found.size == parameters(found.model, SHAPES) and found.reference == target
    for hidden in (found.model.width - 16, found.model.width + 16):
        other = parameters(dataclasses.replace(found.model, hidden=hidden), SHAPES)
        assert ratio(other, target) > ratio(found.size, target)
    assert found.model.width > 1.2 * REFERENCE.width


def test_the_reference_matches_itself_exactly():
    for by in MEASURES:
        found = match_size(REFERENCE, SHAPES, by=by)
        assert found.model == REFERENCE and found.mismatch == 0


def test_what_cannot_be_matched_is_said():
    with pytest.raises(ConfigError, match="by is 'params'; it must be parameters or flops"):
        match_size(REFERENCE, SHAPES, by="params")
    with pytest.raises(ConfigError, match="no hidden size of dit_class up to 128 has the .* flops of the reference"):
        small = dataclasses.replace(REFERENCE, hidden=16)
        match_size(small, dataclasses.replace(SHAPES, context=(100_000, 96)), by="flops", backbone="dit_class")


STUDY = load_file(Path(__file__).parents[2] / "configs" / "backbones.py")


@pytest.mark.parametrize("corpus", ("shapes", "digits"))
def test_the_studys_hidden_sizes_are_the_nearest(corpus):
    """Catches a table that was not made again after a backbone or a corpus changed."""
    base, points = from_dict(STUDY.get_config()), STUDY.points()
    reference = apply_overrides(base, points[f"{corpus}-mmdit"])
    shapes = load_corpus(reference.data, 0).shapes
    measures = MEASURES if corpus == "shapes" else ("flops",)
    for by in measures:
        for name in DIFFERENCES:
            config = apply_overrides(base, points[f"{corpus}-{name}-{by}"])
            found = match_size(reference.model, shapes, by=by, hold="heads", **DIFFERENCES[name])
            assert found.model == config.model, (by, name)
            assert abs(found.mismatch) < 0.04
    # parameters do not depend on the number of tokens
    assert STUDY.HIDDEN["shapes"]["parameters"] == STUDY.HIDDEN["digits"]["parameters"]
    # and nothing but the backbone and its width differs within a corpus
    for name, point in points.items():
        if name.startswith(corpus):
            config = apply_overrides(base, point)
            assert dataclasses.replace(config, model=reference.model) == reference
