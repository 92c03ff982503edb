"""The single file of SD3 and SD3.5, read by diffusers' own converter; and each swapped half by itself."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as their_converter
from safetensors.torch import load_file, save_file

from helpers.random_runs import QUICK, inputs, our_velocity
from helpers.torch_reference import their_velocity
from rfjax.interop import layouts
from rfjax.interop.exporting import export_run
from rfjax.interop.importing import import_checkpoint
from rfjax.interop.transforms import Linear

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def single(runs, tmp_path_factory):
    made = {}

    def file(variant):
        if variant not in made:
            out = tmp_path_factory.mktemp("single") / f"{variant}.safetensors"
            made[variant] = export_run(runs(variant, "sd3").folder, layout="sd3", out=out)
        return made[variant]

    return file


@pytest.mark.parametrize("variant", QUICK)
def test_their_converter_makes_our_diffusers_folder_of_our_single_file(exported, single, variant):
    """The two layouts disagree in any tensor: the converter is diffusers' own."""
    _, folder = exported(variant, "sd3")
    converted = their_converter(load_file(single(variant)))
    ours = load_file(folder / WEIGHTS)
    assert converted.keys() == ours.keys()
    assert [key for key in ours if not torch.equal(converted[key], ours[key])] == []


@pytest.mark.parametrize("variant", QUICK)
def test_from_single_file_gives_our_velocity(exported, single, variant):
    """A file that only our own reader understands."""
    run, folder = exported(variant, "sd3")
    model = SD3Transformer2DModel.from_single_file(str(single(variant)), config=str(folder), local_files_only=True)
    arrays = inputs(run.config, 16, 8)
    with torch.no_grad():
        theirs = their_velocity(model, arrays).numpy()
    np.testing.assert_allclose(our_velocity(run, arrays), theirs, rtol=0, atol=2e-5)


SWAPS = {
    "norm_out.linear": ("outside", "final/modulation"),
    "transformer_blocks.2.norm1_context.linear": ("last", "context/modulation"),
}


@pytest.mark.parametrize("name", SWAPS)
def test_each_swap_of_halves_is_needed(runs, exported, tmp_path, monkeypatch, name):
    """A swap left out. The last context's changes the output by less than a tolerance sees: so tensors."""
    _, folder = exported("plain", "sd3")
    right = load_file(folder / WEIGHTS)
    table, module = SWAPS[name]
    rows = dict(getattr(layouts.DIFFUSERS, table))
    rows[module] = layouts.Row(rows[module].names, Linear())
    monkeypatch.setitem(layouts.LAYOUTS, "diffusers", dataclasses.replace(layouts.DIFFUSERS, **{table: rows}))
    export_run(runs("plain", "sd3").folder, layout="diffusers", out=tmp_path / "unswapped")
    wrong = load_file(tmp_path / "unswapped" / WEIGHTS)
    assert {key for key in right if not torch.equal(right[key], wrong[key])} == {f"{name}.weight", f"{name}.bias"}
    for suffix in ("weight", "bias"):
        halves = wrong[f"{name}.{suffix}"].chunk(2)
        assert torch.equal(right[f"{name}.{suffix}"], torch.cat(halves[::-1]))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_foreign_single_file_becomes_a_run(single, tmp_path, prefix):
    """A file with or without the prefix, with an autoencoder beside the network, and no manifest."""
    tensors = {
        key.replace("model.diffusion_model.", prefix): value for key, value in load_file(single("dual_qk_norm")).items()
    }
    beside = {"first_stage_model.decoder.conv_in.weight": torch.zeros(2, 2)} if prefix else {}
    save_file(tensors | beside, tmp_path / "foreign.safetensors")
    sizes = {"data.context_tokens": 9, "data.image_size": 16}
    imported = import_checkpoint(tmp_path / "foreign.safetensors", tmp_path / "run", overrides=sizes)
    assert (imported.layout, imported.ignored) == ("sd3", len(beside))
    model = imported.config.model
    assert imported.config.timestep_shift == 3.0  # the released models', where nothing else says it
    assert (model.depth, model.width, model.dual_attention_blocks, model.qk_norm) == (3, 192, 2, True)
    export_run(tmp_path / "run", layout="sd3", out=tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert {key.removeprefix("model.diffusion_model.") for key in again} == {
        key.removeprefix(prefix) for key in tensors
    }
    assert all(
        torch.equal(again["model.diffusion_model." + key.removeprefix(prefix)], value) for key, value in tensors.items()
    )
