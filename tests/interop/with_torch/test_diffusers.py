"""diffusers as the referee: the same tensors give the same velocity, both ways."""

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from test_layouts import RELEASED, RELEASED_SHAPES

from helpers.random_runs import QUICK, inputs, our_velocity
from helpers.torch_reference import random_module, their_velocity
from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.interop.exporting import diffusers_config, export_run, parameter_shapes
from rfjax.interop.importing import import_checkpoint
from rfjax.interop.layouts import DIFFUSERS, tensor_shapes
from rfjax.training.checkpoint import restore_params
from rfjax.training.run import open_run

SIZES = [(16, 16), (24, 24), (8, 20)]  # two resolutions, one not square; other variants take the last alone
CLOSE = 2e-5  # of outputs at unit scale, in float32
MODULE = {
    "plain": {},
    "qk_norm": {"qk_norm": "rms_norm"},
    "dual_qk_norm": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}


@pytest.mark.parametrize("variant", QUICK)
def test_exported_models_give_our_velocity(exported, variant):
    """Catches any wrong name, axis, half or buffer, in any layer."""
    run, folder = exported(variant)
    model, report = SD3Transformer2DModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    for height, width in SIZES if variant == "plain" else SIZES[-1:]:
        arrays = inputs(run.config, height, width)
        with torch.no_grad():
            theirs = their_velocity(model, arrays).numpy()
        assert 0.5 < theirs.std() < 2  # else the bound below means something else
        np.testing.assert_allclose(our_velocity(run, arrays), theirs, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("variant", QUICK)
def test_imported_models_give_their_velocity(tmp_path, variant):
    """Catches an inverse that is not one; positions by the formula where the network was trained with others."""
    module = random_module(**MODULE[variant])
    module.save_pretrained(tmp_path / "theirs")
    sizes = {"data.context_tokens": 7, "data.image_size": 16}
    imported = import_checkpoint(tmp_path / "theirs", tmp_path / "run", overrides=sizes)
    assert imported.config.model.positions == "stored"  # diffusers' default positions start at the corner
    run = open_run(tmp_path / "run", {})
    params, _ = restore_params(run.workdir, 0, "ema")
    for height, width in SIZES if variant == "plain" else SIZES[-1:]:
        arrays = inputs(run.config, height, width)
        with torch.no_grad():
            theirs = their_velocity(module, arrays).numpy()
        assert 0.5 < theirs.std() < 2
        np.testing.assert_allclose(our_velocity(run, arrays, params), theirs, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("variant", QUICK)
def test_there_and_back_again_keeps_every_bit(tmp_path, variant):
    """Catches a tensor that is rounded, or a buffer that is computed anew, on the way through a run."""
    random_module(**MODULE[variant]).save_pretrained(tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "run")
    export_run(tmp_path / "run", layout="diffusers", out=tmp_path / "ours")
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(tmp_path / "theirs" / name), load_file(tmp_path / "ours" / name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_side_that_patches_do_not_divide_is_refused(exported):
    """Catches a crop that drops the last row in silence."""
    run, _ = exported("plain")
    with pytest.raises(ConfigError, match=r"latents of 15x16 cannot be cut .* config.model.patch_size=2"):
        our_velocity(run, inputs(run.config, 15, 16))


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_diffusers_own_keys(name):
    """Catches names of the right number and the wrong spelling; nothing is allocated."""
    model = RELEASED[name][0]
    ours = tensor_shapes(DIFFUSERS, model, parameter_shapes(model, RELEASED_SHAPES))
    config = diffusers_config(Config(model=model), RELEASED_SHAPES)
    with torch.device("meta"):
        module = SD3Transformer2DModel.from_config(config)
    theirs = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert ours == theirs
