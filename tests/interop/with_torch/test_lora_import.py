"""Files of LoRA factors, read: our own come back to the bit, PEFT's give diffusers' velocity, and others are refused by
name."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

from helpers import tuned_runs
from helpers.random_runs import inputs, our_velocity
from helpers.torch_reference import their_velocity
from rfjax.cli import main
from rfjax.errors import ConfigError
from rfjax.interop.lora_files import export_adapter
from rfjax.interop.lora_import import import_adapter
from rfjax.results.run_files import read_run
from rfjax.training import adapted
from rfjax.training.run import describe, plan_run

CLOSE = 2e-5  # of velocities at unit scale, in float32
RANK, ALPHA = 40, 28.0  # the rank is cut in the last layer and in the embedding of the context
Q, OUT = "transformer_blocks.0.attn.to_q", "norm_out.linear"


@pytest.fixture(scope="module")
def base(exported, tmp_path_factory):
    """(the run, its folder as one that can be adapted, the network of diffusers)."""
    run, whole = exported("dual_qk_norm")
    home = tmp_path_factory.mktemp("based") / "base"
    home.mkdir()
    (home / "config.json").write_bytes((run.folder / "config.json").read_bytes())
    (home / "checkpoints").symlink_to(run.folder / "checkpoints")
    (home / "run.json").write_text(json.dumps(describe(plan_run(run.config, run.folder), None)))
    return run, home, SD3Transformer2DModel.from_pretrained(whole)


def velocities(run, folder, network):
    """(ours with the imported adapter, theirs) on the same inputs."""
    arrays = inputs(run.config, 8, 20)
    with torch.no_grad():
        theirs = their_velocity(network, arrays).numpy()
    return our_velocity(run, arrays, adapted.restore_params(folder, 0, "ema")[0]), theirs


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE * max(1.0, float(theirs.std())))


def test_our_own_file_comes_back_to_the_bit(base, tmp_path):
    """Catches inputs for outputs, exchanged halves of a modulation, queries for keys, the layers of a stack in another
    order, a rank that stays filled up, and a scale that is applied twice or never."""
    run, home, _ = base
    _, factors = tuned_runs.write_tuned(tmp_path / "tuned", home, 3, run.params, RANK, ALPHA)
    file = export_adapter(tmp_path / "tuned", out=tmp_path / "adapter.safetensors")
    assert main(["import", str(file), f"--base={home}@3", f"--out={tmp_path / 'back'}"]) == 0
    again = export_adapter(tmp_path / "back", out=tmp_path / "again.safetensors")
    first, second = load_file(file), load_file(again)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor, err_msg=name)
    back = adapted.read_adapter(tmp_path / "back", 0, "ema")
    ours = adapted.read_adapter(tmp_path / "tuned", 5, "ema")
    assert back.keys() == ours.keys() and len(jax.tree.leaves(factors)) == 2 * len(back)
    for leaf, each in ours.items():
        np.testing.assert_array_equal(back[leaf]["a"], each["a"], err_msg=leaf)
        np.testing.assert_array_equal(back[leaf]["b"], np.float32(ALPHA / RANK) * each["b"], err_msg=leaf)
    assert read_run(tmp_path / "back").facts["role"] == "tuned"


def add_random_adapter(network, settings, seed=0):
    network.add_adapter(settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)


@pytest.mark.parametrize("alpha_from", ["metadata", "keys", "settings"])
def test_a_file_that_peft_made_gives_the_velocity_of_diffusers(base, tmp_path, alpha_from):
    """Some maps alone are adapted, at two ranks and two alphas. Catches an alpha that is lost, or taken for another
    map, and maps that the file leaves alone."""
    run, home, network = base
    settings = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_v", "add_k_proj", "to_out.0", "norm1.linear", "norm_out.linear", "proj_out"],
        rank_pattern={"to_v": 3},
        alpha_pattern={"to_v": 12},
    )
    add_random_adapter(network, settings)
    try:
        network.save_lora_adapter(tmp_path / "made")
        file = tmp_path / "made" / "pytorch_lora_weights.safetensors"
        if alpha_from != "metadata":
            tensors = {f"base_model.model.{name}": tensor for name, tensor in load_file(file).items()}
            for name in [name for name in tensors if ".lora_A." in name and alpha_from == "keys"]:
                alpha = np.float32(12 if "to_v" in name else 6)
                tensors[name.replace(".lora_A.weight", ".alpha")] = np.array(alpha)
            save_file(tensors, file)  # without metadata
        if alpha_from == "settings":
            more = {"lora_alpha": 6, "r": 4, "alpha_pattern": {"to_v": 12}, "rank_pattern": {"to_v": 3}}
            (file.parent / "adapter_config.json").write_text(json.dumps(more))
        found = import_adapter(file, str(home), tmp_path / "tuned")
        ours, theirs = velocities(run, tmp_path / "tuned", network)
    finally:
        network.delete_adapters("default")
    plain = our_velocity(run, inputs(run.config, 8, 20), run.params)
    assert np.abs(plain - theirs).max() > 0.05 and 0 < found.maps < found.of
    assert_close(ours, theirs)


def small(**changes):
    """A file's tensors: one map with factors of rank 2."""
    rng = np.random.default_rng(0)
    tensors = {
        f"transformer.{Q}.lora_A.weight": rng.standard_normal((2, 128), dtype=np.float32),
        f"transformer.{Q}.lora_B.weight": rng.standard_normal((128, 2), dtype=np.float32),
    } | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


KEY = f"transformer.{Q}.lora_"
ZEROS = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transformer.blocks.0.q.lora_A.weight": ZEROS(2, 128)}, "transformer.blocks.0.q.lora_A.weight, which is no"),
        (
            {"transformer.transformer_blocks.0.attn.to_qq.lora_A.weight": ZEROS(2, 128)},
            f"to_qq.lora_A.weight, which is no factor of a linear map of this network; the nearest name is {Q}",
        ),
        ({"transformer.pos_embed.proj.lora_A.weight": ZEROS(2, 4, 2, 2)}, "pos_embed.proj.lora_A.weight, which is no"),
        ({"lora_unet_x.lora_down.weight": ZEROS(2, 128)}, "lora_unet_x.lora_down.weight, which is no factor"),
        ({KEY + "magnitude_vector": ZEROS(128)}, "lora_magnitude_vector, which is no factor"),
        ({KEY + "B.weight": ZEROS(128, 3)}, "lora_A.weight in .* has rank 2, and .*lora_B.weight 3"),
        ({KEY + "A.weight": ZEROS(2, 64)}, r"lora_A.weight in .* has the shape \[2, 64\], and .* has 128 inputs"),
        ({KEY + "B.weight": ZEROS(64, 2)}, r"lora_B.weight in .* has the shape \[64, 2\], and .* has 128 outputs"),
        ({KEY + "A.weight": np.full((2, 128), np.nan, np.float32)}, "lora_A.weight in .* not finite"),
        ({KEY + "B.weight": None}, f"and no {Q}.lora_B.weight; get the whole file"),
        ({KEY + "A.weight": None, KEY + "B.weight": None, "x": ZEROS(1)}, "has the tensor x, which is no factor"),
        ({f"{Q}.lora_A.weight": ZEROS(2, 128)}, "two tensors of one factor; remove one"),
        ({f"{Q}.alpha": np.array(-1.0, np.float32)}, "the alpha -1.0; it must be a positive number"),
        ({f"{OUT}.alpha": np.array(1.0, np.float32)}, f"an alpha of {OUT} and no factors of it"),
    ],
)
def test_what_is_no_adapter_of_the_run_is_refused_by_name(base, tmp_path, changes, said):
    save_file(small(**changes), tmp_path / "file.safetensors")
    with pytest.raises(ConfigError, match=said):
        import_adapter(tmp_path / "file.safetensors", str(base[1]), tmp_path / "tuned")
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]


def test_settings_that_are_more_than_factors_are_refused(base, tmp_path, capsys):
    save_file(small(), tmp_path / "file.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"use_dora": true, "lora_alpha": 2}')
    command = ["import", str(tmp_path / "file.safetensors"), f"--out={tmp_path / 'tuned'}"]
    assert main([*command, f"--base={base[1]}"]) == 2
    assert "adapter_config.json has use_dora true; only adapters with false are read" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text('{"init_lora_weights": "pissa_niter_16", "lora_alpha": 2}')
    assert main([*command, f"--base={base[1]}"]) == 2
    assert 'has init_lora_weights "pissa_niter_16", which can change the network' in capsys.readouterr().err
    assert main([*command, f"--base={base[1]}", "--config=shapes"]) == 2
    assert "leave --config and --config.* out" in capsys.readouterr().err
    assert main(command) == 2
    assert "import it beside the run that it adapts, with --base RUN" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()
