"""Advice on settings: given where it applies, and nowhere else."""

import pytest

from rfjax.config import from_dict
from rfjax.data.batch import BatchShapes
from rfjax.training.advice import advice


def lines(platform=None, image=32, **model_and_train):
    settings = {"model": {"depth": 24}, "train": {"compute_dtype": "bfloat16"}}
    for key, value in model_and_train.items():
        section, field = key.split("__")
        settings[section][field] = value
    return list(advice(from_dict(settings), BatchShapes((1, image, image, 16), (154, 8), 8, ()), platform))


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, ["depth 24"]),
        ({"model__depth": 23}, []),
        ({"model__depth": 18, "image": 64}, ["1,178 tokens"]),
        ({"image": 64}, ["depth 24 and 1,178 tokens"]),
        ({"train__compute_dtype": "float32"}, []),
        ({"model__qk_norm": True}, []),
        ({"model__depth": 12, "platform": "cuda"}, ["train.unroll=0"]),
        ({"model__depth": 12, "platform": "cuda", "train__unroll": 0}, []),
        ({"model__depth": 12, "platform": "tpu"}, []),
    ],
)
def test_advice_is_given_where_it_applies(given, wanted):
    """Catches a limit that is off by one, text tokens that are not counted, and advice that was taken already."""
    found = lines(**given)
    assert len(found) == len(wanted) and all(want in line for want, line in zip(wanted, found, strict=True)), found
