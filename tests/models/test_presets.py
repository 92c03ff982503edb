"""Published sizes: parameters and FLOPs of the DiT family against the counts in print."""

import pytest

from rfjax.models.backbone import make_backbone, parameter_count
from rfjax.models.flops import forward_flops
from rfjax.models.presets import DIT_SIZES, IMAGENET, dit_class

# Peebles and Xie 2023, table 4: billions of multiply-adds, which are called Gflops there.
GIGA = {
    "S/8": 0.36,
    "S/4": 1.41,
    "S/2": 6.06,
    "B/8": 1.42,
    "B/4": 5.56,
    "B/2": 23.01,
    "L/8": 5.01,
    "L/4": 19.70,
    "L/2": 80.71,
    "XL/8": 7.39,
    "XL/4": 29.05,
    "XL/2": 118.64,
}
MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}  # table 1


def learnt_variance(model) -> tuple[int, int]:
    """(parameters, multiply-adds) of the outputs for the variance, which only the published networks have."""
    outputs = model.patch_size**2 * IMAGENET.latents[-1]
    return (model.width + 1) * outputs, (IMAGENET.latents[1] // model.patch_size) ** 2 * model.width * outputs


@pytest.mark.parametrize("name", DIT_SIZES)
def test_dits_have_the_published_parameters(name):
    """Compares with the published millions at patches of 2. The exact count of XL/2 is that of the authors' code, which
    counts the fixed positions too; it alone catches a table of classes without the null class's row."""
    model = dit_class(f"{name}/2")
    count = parameter_count(make_backbone(model, IMAGENET, attention="xla")) + learnt_variance(model)[0]
    assert round(count / 1e6) == MILLIONS[name]
    if name == "XL":
        assert count + 256 * model.width == 675_129_632


@pytest.mark.parametrize("name", GIGA)
def test_dits_have_the_published_flops(name):
    """Half of our operations, which are two per multiply-add, with the variance's outputs added. What is in print is
    rounded to 0.01, and includes up to 0.03 % of elementwise work that our convention leaves out."""
    model = dit_class(name)
    ours = (forward_flops(model, IMAGENET) / 2 + learnt_variance(model)[1]) / 1e9
    assert abs(ours - GIGA[name]) <= 0.005 + 3e-4 * GIGA[name]


@pytest.mark.parametrize("name", ("M/2", "XL/3"))
def test_there_is_no_other(name):
    with pytest.raises(KeyError):
        dit_class(name)
