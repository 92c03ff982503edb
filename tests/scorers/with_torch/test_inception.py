"""FID's Inception, beside the same network written out call by call on the weights alone."""

import pytest
import torch
from torch.nn import functional as F

from rfjax.errors import ConfigError
from rfjax.scorers import inception


@pytest.fixture(scope="module")
def weights():
    """Random, running means and variances too, scaled so that activations stay of order one."""
    torch.manual_seed(0)
    state = inception.Inception().state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value.copy_(torch.randn_like(value) * (2 / value[0].numel()) ** 0.5)
        elif name.endswith("bn.weight"):
            value.uniform_(0.7, 1.3)
        elif name.endswith(("bn.bias", "running_mean")):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.7, 1.3)
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture
def file(weights, tmp_path):
    def write(**changes):
        path = tmp_path / "pt_inception.pth"
        state = {**weights, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)} | changes
        torch.save({name: value for name, value in state.items() if value is not None}, path)
        return path

    return write


def written_out(s, x):
    """The published graph, layer by layer."""

    def conv(x, name, stride=1, padding=0):
        x = F.conv2d(x, s[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
        x = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 0.001)
        return torch.relu(x * s[f"{name}.bn.weight"][:, None, None] + s[f"{name}.bn.bias"][:, None, None])

    def mean3(x):  # over the places that are there
        total = F.avg_pool2d(x, 3, 1, 1) * 9
        return total / (F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, 1, 1) * 9)

    x = conv(x, "Conv2d_1a_3x3", stride=2)
    x = conv(x, "Conv2d_2a_3x3")
    x = conv(x, "Conv2d_2b_3x3", padding=1)
    x = F.max_pool2d(x, 3, 2)
    x = conv(x, "Conv2d_3b_1x1")
    x = conv(x, "Conv2d_4a_3x3")
    x = F.max_pool2d(x, 3, 2)
    for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        b5 = conv(conv(x, f"{m}.branch5x5_1"), f"{m}.branch5x5_2", padding=2)
        b3 = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        b3 = conv(b3, f"{m}.branch3x3dbl_3", padding=1)
        x = torch.cat([conv(x, f"{m}.branch1x1"), b5, b3, conv(mean3(x), f"{m}.branch_pool")], 1)
    b3 = conv(conv(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", padding=1)
    b3 = conv(b3, "Mixed_6a.branch3x3dbl_3", stride=2)
    x = torch.cat([conv(x, "Mixed_6a.branch3x3", stride=2), b3, F.max_pool2d(x, 3, 2)], 1)
    for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        b7 = conv(x, f"{m}.branch7x7_1")
        b7 = conv(b7, f"{m}.branch7x7_2", padding=(0, 3))
        b7 = conv(b7, f"{m}.branch7x7_3", padding=(3, 0))
        d7 = conv(x, f"{m}.branch7x7dbl_1")
        d7 = conv(d7, f"{m}.branch7x7dbl_2", padding=(3, 0))
        d7 = conv(d7, f"{m}.branch7x7dbl_3", padding=(0, 3))
        d7 = conv(d7, f"{m}.branch7x7dbl_4", padding=(3, 0))
        d7 = conv(d7, f"{m}.branch7x7dbl_5", padding=(0, 3))
        x = torch.cat([conv(x, f"{m}.branch1x1"), b7, d7, conv(mean3(x), f"{m}.branch_pool")], 1)
    b7 = conv(x, "Mixed_7a.branch7x7x3_1")
    b7 = conv(b7, "Mixed_7a.branch7x7x3_2", padding=(0, 3))
    b7 = conv(b7, "Mixed_7a.branch7x7x3_3", padding=(3, 0))
    b7 = conv(b7, "Mixed_7a.branch7x7x3_4", stride=2)
    b3 = conv(conv(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", stride=2)
    x = torch.cat([b3, b7, F.max_pool2d(x, 3, 2)], 1)
    for m, pool in (("Mixed_7b", mean3), ("Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))):
        b3 = conv(x, f"{m}.branch3x3_1")
        b3 = torch.cat(
            [conv(b3, f"{m}.branch3x3_2a", padding=(0, 1)), conv(b3, f"{m}.branch3x3_2b", padding=(1, 0))], 1
        )
        d3 = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        d3 = torch.cat(
            [conv(d3, f"{m}.branch3x3dbl_3a", padding=(0, 1)), conv(d3, f"{m}.branch3x3dbl_3b", padding=(1, 0))], 1
        )
        x = torch.cat([conv(x, f"{m}.branch1x1"), b3, d3, conv(pool(x), f"{m}.branch_pool")], 1)
    return F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]


def test_the_network_is_the_published_graph(weights, file):
    """Catches branches joined in another order, a kernel turned, averages that count the padding, the last
    block's maximum taken as an average, and another epsilon."""
    loaded = inception.load(file(), torch.device("cpu"))
    images = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = loaded.embed_images(images)
    wanted = written_out(weights, images)
    assert found.shape == (1, 2048) and float(wanted.std()) > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_it_has_the_published_size():
    """21,785,568 parameters before the last layer, as torchvision's Inception v3 (27,161,264 less 3,326,696 of
    the auxiliary head and 2,049,000 of the last layer)."""
    assert sum(value.numel() for value in inception.Inception().parameters()) == 21_785_568


def test_other_weights_are_refused_or_named(weights, file, monkeypatch):
    """Catches a network left partly random, and other weights under FID's name."""
    assert not inception.load(file(), torch.device("cpu")).official
    monkeypatch.setattr(inception, "OFFICIAL_SHA256", inception.content_hash(file())[:8])
    assert inception.load(file(), torch.device("cpu")).official
    for name, value in (
        ("Mixed_7c.branch1x1.conv.weight", None),
        ("Mixed_8a.weight", torch.zeros(1)),
        ("Conv2d_1a_3x3.bn.bias", torch.zeros(3)),
    ):
        with pytest.raises(ConfigError, match="1 tensors"):
            inception.load(file(**{name: value}), torch.device("cpu"))
