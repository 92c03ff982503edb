"""The PyTorch module that is written beside a plain export: for what diffusers cannot express."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.random_runs import DATA, MODEL, inputs, make_config, make_run, our_velocity
from helpers.torch_reference import load_plain
from rfjax.errors import ConfigError
from rfjax.interop.exporting import export_run

MODELS = {
    "three_weight_sets": MODEL
    | {"weight_sets": 3, "first_text_tokens": 3, "qk_norm": True, "dual_attention_blocks": 1},
    "other_sizes": MODEL | {"head_size": 32, "patch_size": 4, "mlp_ratio": 2.5, "time_embedding_size": 64},
}


@pytest.fixture(scope="module", params=MODELS)
def exported_plain(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run = make_run(folder / "run", make_config(MODELS[request.param], DATA))
    return run, export_run(run.folder, layout="plain", out=folder / "out", max_shard_bytes=10**6)


def test_the_module_computes_our_velocity(exported_plain):
    """Catches any layer of the PyTorch module that differs from ours."""
    run, folder = exported_plain
    model = load_plain(folder)
    for size in ((16, 16), (8, 20)):
        z, t, context, pooled = arrays = inputs(run.config, *size)
        with torch.no_grad():
            out = model(torch.from_numpy(z).permute(0, 3, 1, 2), *map(torch.from_numpy, (t, context, pooled)))
        np.testing.assert_allclose(our_velocity(run, arrays), out.permute(0, 2, 3, 1).numpy(), rtol=0, atol=2e-5)


def test_the_module_needs_nothing_of_ours(exported_plain):
    """Catches an import of rfjax or JAX in the module that a PyTorch user gets."""
    _, folder = exported_plain
    without = "import sys; sys.modules['jax'] = sys.modules['rfjax'] = None"
    script = f"{without}; from mmdit import load; print(len(load('.').blocks))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr


def test_diffusers_refuses_three_weight_sets_and_says_what_to_use(tmp_path):
    """A model exported into a layout that drops a third of its weights."""
    run = make_run(tmp_path / "run", make_config(MODELS["three_weight_sets"], DATA))
    with pytest.raises(
        ConfigError, match=r"config.model.weight_sets is 3, .* diffusers layout needs 2.*--format plain"
    ):
        export_run(run.folder, layout="diffusers", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_module_refuses_what_it_would_cut_off(exported_plain):
    """Rows dropped in silence, or a raw error of reshape."""
    run, folder = exported_plain
    _, _, context, pooled = map(torch.from_numpy, inputs(run.config, 16, 16))
    with pytest.raises(ValueError, match="sides must be multiples of"):
        load_plain(folder)(torch.zeros(2, 4, 15, 16), 0.5, context, pooled)
    assert load_plain(folder)(torch.zeros(2, 4, 16, 16), 0.5, context, pooled).shape == (2, 4, 16, 16)
