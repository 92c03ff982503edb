"""The PyTorch module of a plain export for networks of clips: frames, patches of several frames, both ways over time,
both kinds of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from helpers.random_runs import DATA, MODEL, make_config, make_run
from helpers.torch_reference import load_plain
from rfjax.errors import ConfigError
from rfjax.interop.exporting import export_run
from rfjax.interop.importing import import_checkpoint

SMALL = MODEL | {"depth": 2, "hidden": 48, "head_size": 24}
MODELS = {
    "joint": {},
    "joint_rotary": {
        "depth": 3,
        "temporal_patch_size": 2,
        "positions": "rotary",
        "rotary_channels": (4, 8, 12),
        "rotary_theta": 256.0,
        "qk_norm": True,
        "dual_attention_blocks": 1,
        "weight_sets": 3,
        "first_text_tokens": 3,
    },
    "factorised": {"temporal_attention": "factorised", "temporal_patch_size": 2, "dual_attention_blocks": 1},
    "factorised_rotary": {"temporal_attention": "factorised", "positions": "rotary", "qk_norm": True},
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run = make_run(folder / "run", make_config(SMALL | MODELS[request.param], DATA | {"frames": 4, "image_size": 8}))
    return run, export_run(run.folder, layout="plain", out=folder / "out")


def test_the_module_computes_our_velocity_of_clips_and_of_stills(exported):
    """Catches a patch whose frames come in another order, a time that is added twice or not, a rotation of pairs that
    are no neighbours, text that knows the time, and a still that is not its frame twice."""
    run, folder = exported
    model, rng = load_plain(folder), np.random.default_rng(0)
    text = run.config.data.context_tokens, run.config.data.context_size
    for frames, height, width in ((4, 8, 10), (1, 8, 8)):
        z = rng.standard_normal((2, frames, height, width, 4)).astype(np.float32)
        others = (
            np.array([0.25, 0.8125], np.float32),
            rng.standard_normal((2, *text)).astype(np.float32),
            rng.standard_normal((2, run.config.data.pooled_size)).astype(np.float32),
        )
        with jax.default_matmul_precision("highest"):
            ours = np.asarray(jax.jit(run.backbone.apply)(run.params, z, *map(jnp.asarray, others)))
        with torch.no_grad():
            theirs = model(torch.from_numpy(z).permute(0, 4, 1, 2, 3), *map(torch.from_numpy, others))
        assert ours.std() > 0.1
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 4, 1).numpy(), rtol=0, atol=2e-5)
    with torch.no_grad():  # an image may come without its axis of frames
        still = torch.from_numpy(z[:, 0]).permute(0, 3, 1, 2)
        assert torch.equal(model(still, *map(torch.from_numpy, others)), theirs[:, :, 0])


def test_an_export_of_clips_comes_back_as_it_was(exported, tmp_path):
    """Catches an import that asks a network with rotary positions for a grid, and an attention over time left out."""
    run, folder = exported
    import_checkpoint(folder, tmp_path / "back")
    again = export_run(tmp_path / "back", layout="plain", out=tmp_path / "again")
    first, second = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_the_module_refuses_frames_that_it_would_cut_off(exported):
    run, folder = exported
    few = 3 if run.config.model.temporal_patch_size == 2 else 0
    with pytest.raises(ValueError, match=f"latents of {few} frames"):
        load_plain(folder)(torch.zeros(1, 4, few, 8, 8), 0.5, torch.zeros(1, 7, 24), torch.zeros(1, 20))


def test_diffusers_refuses_clips_and_says_what_to_use(exported, tmp_path):
    run, _ = exported
    for layout, out in (("diffusers", "out"), ("sd3", "out.safetensors")):
        with pytest.raises(ConfigError, match="use --format plain, whose PyTorch module takes frames"):
            export_run(run.folder, layout=layout, out=tmp_path / out)
    assert not list(tmp_path.iterdir())
