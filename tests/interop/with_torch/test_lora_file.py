"""An adapter's file against diffusers: its names are those of linear maps there, and the adapted network is ours."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from helpers import tuned_runs
from helpers.random_runs import inputs, our_velocity
from helpers.torch_reference import their_velocity
from rfjax.errors import ConfigError
from rfjax.interop.exporting import export_run
from rfjax.interop.lora_files import export_adapter
from rfjax.models import lora
from rfjax.training.run import describe, plan_run

CLOSE = 2e-5  # of velocities at unit scale, in float32
RANK, ALPHA = 40, 28.0  # the rank is cut in the last layer and in the embedding of the context


@pytest.fixture(scope="module")
def adapted(runs, tmp_path_factory):
    """(the run, its merged parameters, the network of diffusers without the adapter, the adapter's tensors)."""
    root, run = tmp_path_factory.mktemp("adapted"), runs("dual_qk_norm")
    record = describe(plan_run(run.config, run.folder), None)
    home = root / "base"
    home.mkdir()
    (home / "config.json").write_bytes((run.folder / "config.json").read_bytes())
    (home / "checkpoints").symlink_to(run.folder / "checkpoints")
    (home / "run.json").write_text(json.dumps(record))
    _, ema = tuned_runs.write_tuned(root / "tuned", home, 3, run.params, RANK, ALPHA)
    merged = jax.jit(lora.merge)(run.params, ema, ALPHA / RANK)
    network = SD3Transformer2DModel.from_pretrained(export_run(home, layout="diffusers", out=root / "whole"))
    file = export_adapter(root / "tuned", out=root / "adapter.safetensors")
    whole = export_run(root / "tuned", layout="diffusers", out=root / "merged")
    return run, merged, network, load_file(file), SD3Transformer2DModel.from_pretrained(whole), file


def test_merged_by_hand_the_file_gives_our_velocity(adapted):
    """Catches a wrong name, inputs for outputs, exchanged halves of a modulation, queries for keys, heads in another
    order, and a lost alpha / rank."""
    run, merged, network, tensors, _, _ = adapted
    modules, arrays = dict(network.named_modules()), inputs(run.config, 8, 20)
    maps = {name.rsplit(".lora_", 1)[0] for name in tensors}
    assert {f"{name}.lora_{part}.weight" for name in maps for part in "AB"} == tensors.keys()
    linear = {f"transformer.{name}" for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    assert maps == linear
    kept = {name: module.weight.detach().clone() for name, module in modules.items() if f"transformer.{name}" in maps}
    with torch.no_grad():
        plain = their_velocity(network, arrays).numpy()
        for name, weight in kept.items():
            product = tensors[f"transformer.{name}.lora_B.weight"] @ tensors[f"transformer.{name}.lora_A.weight"]
            modules[name].weight.copy_(weight + product)
        theirs = their_velocity(network, arrays).numpy()
        for name, weight in kept.items():
            modules[name].weight.copy_(weight)
    ours = our_velocity(run, arrays, merged)
    scale = max(1.0, float(theirs.std()))
    assert np.abs(theirs - plain).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE * scale)


def test_the_merged_export_gives_our_velocity(adapted):
    run, merged, _, _, whole, _ = adapted
    arrays = inputs(run.config, 8, 20)
    with torch.no_grad():
        theirs = their_velocity(whole, arrays).numpy()
    np.testing.assert_allclose(
        our_velocity(run, arrays, merged), theirs, rtol=0, atol=CLOSE * max(1.0, float(theirs.std()))
    )


def test_all_maps_have_one_rank(adapted):
    """Older loaders take one alpha for maps of all ranks."""
    tensors = adapted[3]
    assert {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name} == {RANK}
    assert {tensor.shape[1] for name, tensor in tensors.items() if ".lora_B." in name} == {RANK}
    assert not [name for name in tensors if "alpha" in name]


def test_diffusers_loads_the_file(adapted):
    run, merged, network, _, _, file = adapted
    arrays = inputs(run.config, 8, 20)
    network.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="transformer")
    with torch.no_grad():
        theirs = their_velocity(network, arrays).numpy()
    network.unload_lora()
    np.testing.assert_allclose(
        our_velocity(run, arrays, merged), theirs, rtol=0, atol=CLOSE * max(1.0, float(theirs.std()))
    )


def test_a_run_without_an_adapter_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="is no tuned run and has no adapter"):
        export_adapter(runs("dual_qk_norm").folder, out=tmp_path / "a.safetensors")
