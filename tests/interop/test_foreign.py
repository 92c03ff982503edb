"""Checkpoints as other tools write them: settings elsewhere, wrapped names, averages, files of another kind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.schedulers import EULER, scheduler
from rfjax.config import Config
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import folder_moved_when_whole, remove_left_behind
from rfjax.interop import pipeline as pipeline_parts
from rfjax.interop.exporting import export_run
from rfjax.interop.finding import find
from rfjax.interop.importing import import_checkpoint, lines
from rfjax.interop.keys import find_networks
from rfjax.interop.safetensors_files import Tensor
from rfjax.interop.scheduler import Scheduler, choose_shift, read_scheduler
from rfjax.training.checkpoint import restore_params

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """A transformer's folder without rfjax's manifest, as somebody else's."""
    out = tmp_path_factory.mktemp("foreign") / "transformer"
    export_run(runs("dual_qk_norm").folder, layout="diffusers", out=out)
    (out / "rfjax.json").unlink()
    return out


@pytest.fixture(scope="module")
def tensors(exported):
    return load_file(exported / WEIGHTS)


@pytest.fixture
def pipeline(exported, tmp_path):
    """A pipeline's folder whose scheduler has the shift 1.15."""
    folder = tmp_path / "pipeline"
    shutil.copytree(exported, folder / "transformer")
    (folder / "transformer/scheduler_config.json").unlink()
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text("{}")
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(EULER))
    return folder


NOTED = {
    "use_karras_sigmas": (True, "samples with Karras sigmas"),
    "use_exponential_sigmas": (True, "samples with exponential sigmas"),
    "use_beta_sigmas": (True, "samples with beta sigmas"),
    "stochastic_sampling": (True, "samples with stochastic steps"),
    "shift_terminal": (0.02, "stretched to a terminal value"),
    "_class_name": ("FlowMatchHeunDiscreteScheduler", "samples with FlowMatchHeunDiscreteScheduler"),
    "new_key": (1, "not known here were not used: new_key"),
}
REFUSED = {
    "_class_name": ["DDIMScheduler", 3, [], None],
    "invert_sigmas": [True, "yes"],
    "num_train_timesteps": [100, "1000", None, 0],
    "prediction_type": ["epsilon", 1],
    "shift": ["3.0", [3.0], {}, None, 0, -1, True],
    "use_dynamic_shifting": ["true", 1],
    "use_karras_sigmas": ["no", 2],
}


@pytest.mark.parametrize("key", NOTED)
def test_what_a_scheduler_has_beyond_a_shift_is_named(tmp_path, key):
    value, said = NOTED[key]
    found = read_scheduler(scheduler(tmp_path, **{key: value}))
    assert found.shift == 1.15 and any(said in note for note in found.notes)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_a_scheduler_that_rfjax_cannot_express_is_refused_by_name(tmp_path, key, value):
    """Catches a network that predicts something else, sampled as a rectified flow; and values of another type."""
    with pytest.raises(RfjaxError, match=f"scheduler_config.json.*{key}.*remove"):
        read_scheduler(scheduler(tmp_path, **{key: value}))


def test_a_missing_shift_is_diffusers_default(tmp_path):
    found = read_scheduler(scheduler(tmp_path, shift=...))
    assert found.shift == 1.0 and "has no shift: taken as 1" in found.notes[0]


def test_an_import_with_dynamic_shifting_says_so_and_records_it(pipeline, tmp_path):
    path = pipeline / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(EULER | {"use_dynamic_shifting": True, "shift": 3.0}))
    imported = import_checkpoint(pipeline, tmp_path / "back")
    tokens = (16 // 2) ** 2
    assert imported.config.timestep_shift == pytest.approx(np.exp(0.5 + 0.65 * (tokens - 256) / 3840))
    assert any("dynamic shifting, which rfjax does not have" in line for line in lines(imported, tmp_path / "back"))
    record = json.loads((tmp_path / "back/run.json").read_text())["imported"]
    assert any("dynamic" in note for note in record["notes"]) and str(path) in record["files"]
    given = import_checkpoint(pipeline, tmp_path / "given", overrides={"timestep_shift": 2.0})
    assert given.config.timestep_shift == 2.0


def test_the_scheduler_is_found_from_every_level(pipeline, tmp_path):
    """Catches the shift lost where the network's folder, a file in it or the folder above is named."""
    sub = pipeline / "transformer"
    for path in (pipeline, sub, sub / WEIGHTS, tmp_path):
        found = find(path)
        assert (found.scheduler.shift, found.settings["num_layers"], found.name) == (1.15, 4, "pipeline"), path
        assert not any("not read" in note for note in found.notes), path
    others = ["diffusion_pytorch_model.sft", "model.safetensors"]
    for name in others:  # which of several files is read must not be a silent choice
        (sub / name).touch()
    said = [note for note in find(pipeline).notes if "were not read" in note]
    assert len(said) == 2 and all(name in note for name, note in zip(others, said, strict=True))
    shutil.copy(sub / WEIGHTS, pipeline / "somebodys_own.sft")  # one file beside the pipeline's parts
    found = find(pipeline / "somebodys_own.sft")
    assert (found.scheduler.shift, found.settings["num_layers"]) == (1.15, 4)


@pytest.mark.parametrize("variant", ("fp16", "non_ema"))
def test_weights_of_a_variant_are_read_with_what_lies_beside_them(pipeline, variant):
    """Catches "no config.json" said of a folder that has one."""
    sub = pipeline / "transformer"
    (sub / WEIGHTS).rename(sub / f"diffusion_pytorch_model.{variant}.safetensors")
    for path in (pipeline, sub, sub / f"diffusion_pytorch_model.{variant}.safetensors"):
        found = find(path)
        assert found.scheduler.shift == 1.15 and found.settings and variant in found.files[0].name
    (sub / "diffusion_pytorch_model.bf16.safetensors").touch()
    with pytest.raises(ConfigError, match="holds the variants"):
        find(pipeline)


def test_no_shift_is_guessed_in_silence(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "alone")
    (folder / "scheduler_config.json").unlink()
    imported = import_checkpoint(folder, tmp_path / "back")
    assert imported.config.timestep_shift == 1.0
    assert any("no scheduler_config.json says the timestep shift" in note for note in imported.notes)


CONFIG = {
    "num_layers": [5, "4", None],
    "patch_size": [4, [2, 2]],
    "in_channels": [16],
    "out_channels": [8],
    "attention_head_dim": [32, "64"],
    "num_attention_heads": [4],
    "joint_attention_dim": [4096],
    "caption_projection_dim": [64],
    "pooled_projection_dim": [2048],
    "pos_embed_max_size": [96],
    "qk_norm": [None, "layer_norm", 1],
    "dual_attention_layers": [[], [0, 2], "0", 3],
    "sample_size": [0, [16, 16], 1e300],
    "guidance_embeds": [True],
    "quantization_config": [{"quant_method": "bitsandbytes"}],
    "architectures": [5],
    "norm_eps": [1e-5],
    "_class_name": ["FluxTransformer2DModel", 1, [1]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CONFIG.items() for value in values])
def test_a_config_that_contradicts_the_tensors_is_refused_by_name(exported, tmp_path, key, value):
    """Catches a network that computes something else than its own library does."""
    folder = shutil.copytree(exported, tmp_path / "theirs", copy_function=os.link)
    content = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").unlink()
    if key == "architectures":
        del content["_class_name"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(RfjaxError, match=rf"config.json.*({key}|model of transformers|is the config of a )"):
        import_checkpoint(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


INDEX = {
    "list": [],
    "text": {"weight_map": "a"},
    "numbers": {"weight_map": {"proj_out.bias": 3}},
    "empty": {"weight_map": {}},
    "missing": {"weight_map": {"proj_out.bias": "diffusion_pytorch_model-00002-of-00002.safetensors"}},
    "lost": {"weight_map": {"proj_out.bias": WEIGHTS, "other.bias": WEIGHTS}},
    "outside": {"weight_map": {"proj_out.bias": "../x.safetensors"}},
}


@pytest.mark.parametrize("what", INDEX)
def test_a_damaged_index_is_refused_by_name(exported, tmp_path, what):
    folder = shutil.copytree(exported, tmp_path / "theirs", copy_function=os.link)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(INDEX[what]))
    with pytest.raises(RfjaxError, match="index|weight_map|outside"):
        import_checkpoint(folder, tmp_path / "back")


def described(names, dtype="F32", **other):
    return {name: Tensor(Path("x.safetensors"), (1,), dtype) for name in names} | other


SD3_NAMES = ("pos_embed", "x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight", "final_layer.linear.bias")


@pytest.mark.parametrize(
    "prefix",
    (
        "",
        "model.diffusion_model.",
        "diffusion_model.",
        "_orig_mod.",
        "module.",
        "transformer.",
        "model.",
        "module._orig_mod.model.diffusion_model.",
    ),
)
def test_the_network_is_found_under_other_tools_prefixes(prefix):
    beside = ("first_stage_model.a", "first_stage_model.b", "text_encoders.clip_l.transformer.proj_out.weight")
    found = find_networks(described([prefix + name for name in SD3_NAMES] + list(beside)))
    assert found.layout.name == "sd3" and found.raw == {name: prefix + name for name in SD3_NAMES}
    assert found.beside == {"first_stage_model": 2, "text_encoders": 1}


@pytest.mark.parametrize("flat", (True, False))
@pytest.mark.parametrize("alone", (True, False))
def test_averages_of_other_tools_are_the_runs_average(flat, alone):
    """Catches the average counted as an autoencoder, and the raw weights imported in its place."""
    names = {
        name: f"diffusion_model.{name}".replace(".", "") if flat else f"diffusion_model.{name}" for name in SD3_NAMES
    }
    ema = {name: f"model_ema.{kept}" for name, kept in names.items()}
    raw = [] if alone else [f"model.diffusion_model.{name}" for name in SD3_NAMES]
    found = find_networks(described([*ema.values(), *raw, "model_ema.decay"]))
    assert (found.raw if alone else found.average) == ema
    assert found.beside == {"model_ema": 1} and any("EMA" in note for note in found.notes)


def test_raw_weights_and_average_are_both_imported(exported, tensors, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "theirs")
    both = {f"_orig_mod.{name}": value for name, value in tensors.items()}
    both |= {f"model_ema.{name}": value + 1 for name, value in tensors.items() if name != "pos_embed.pos_embed"}
    both["model_ema.pos_embed.pos_embed"] = tensors["pos_embed.pos_embed"]
    save_file(both | {"vae.x": np.zeros(3, np.float32)}, folder / WEIGHTS)
    imported = import_checkpoint(folder, tmp_path / "back")
    assert imported.left_out == {"vae": 1} and imported.has_average
    raw, _ = restore_params(tmp_path / "back", 0, "raw")
    average, _ = restore_params(tmp_path / "back", 0, "ema")
    bias = tensors["proj_out.bias"]
    np.testing.assert_array_equal(raw["final"]["linear"]["bias"], bias)
    np.testing.assert_array_equal(average["final"]["linear"]["bias"], bias + 1)


def test_a_second_copy_must_be_the_same(exported, tensors, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "theirs")
    copies = tensors | {f"module.{name}": value for name, value in tensors.items()}
    save_file(copies, folder / WEIGHTS)
    import_checkpoint(folder, tmp_path / "back")
    save_file(copies | {"module.proj_out.bias": tensors["proj_out.bias"] + 1}, folder / WEIGHTS)
    with pytest.raises(ConfigError, match="two networks: module.proj_out.bias is not proj_out.bias"):
        import_checkpoint(folder, tmp_path / "again")


KINDS = {
    "LoRA": ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"],
    "kohya's LoRA": ["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"],
    "LoRA beside": [*SD3_NAMES, "lora_unet_a.lora_up.weight"],
    "ControlNet": [*SD3_NAMES, "controlnet_blocks.0.weight"],
    "textual inversion": ["emb_params"],
    "optimizer's state": ["state.0.exp_avg"],
    "float8 weights with scales": [*SD3_NAMES, "joint_blocks.0.x_block.attn.qkv.scale_weight"],
    "bitsandbytes": [*SD3_NAMES, "joint_blocks.0.x_block.attn.qkv.weight.quant_state.bitsandbytes__nf4"],
}


@pytest.mark.parametrize("what", KINDS)
def test_files_of_another_kind_are_named_with_a_remedy(what):
    with pytest.raises(
        ConfigError, match=f"{what.split()[0] if 'LoRA' not in what else 'LoRA'}.*(get|give|import|merge)"
    ):
        find_networks(described(KINDS[what]))


def test_float8_is_refused_in_the_network_and_allowed_beside_it():
    """Catches a released file refused because its T5 is in float8."""
    find_networks(described(SD3_NAMES) | described(["text_encoders.t5xxl.transformer.x"], "F8_E4M3"))
    with pytest.raises(ConfigError, match="F8_E4M3 .float8."):
        find_networks(described(SD3_NAMES, "F8_E4M3"))
    assert ml_dtypes.bfloat16  # numpy reads bfloat16 through it


def test_what_killed_commands_left_is_removed_and_told(tmp_path):
    """Catches hidden folders of a model's size that stay for ever; and one removed that is being written."""
    code = (
        "import os, pathlib, sys\n"
        "from rfjax.files import folder_moved_when_whole\n"
        "with folder_moved_when_whole(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'x').write_text('x')\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    (left,) = tmp_path.iterdir()
    foreign = tmp_path / ".out.0123abcd-1-0123abcd.tmp"
    foreign.mkdir()
    with folder_moved_when_whole(tmp_path / "other") as living:
        said = remove_left_behind(tmp_path)
        assert living.is_dir() and foreign.is_dir() and not left.exists()
    assert sorted(said) == sorted(
        [
            f"removed {left}, which a process that was killed had left",
            f"{foreign} is of another machine, or from before a restart: remove it if nothing writes it",
        ]
    )


@pytest.mark.parametrize("text", ("[]", "3", "", '{"tokenizer_class": ["CLIPTokenizer"]}', "[" * 2000))
def test_a_damaged_tokenizers_config_is_refused_by_name(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(RfjaxError, match="tokenizer_config.json cannot be read.*fetch the frozen models again"):
        pipeline_parts._tokenizer(tmp_path, "clip")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert pipeline_parts._tokenizer(tmp_path, "clip") == "CLIPTokenizer"


def test_a_config_with_a_shift_by_area_keeps_its_own():
    """Catches an IndexError where an export's config says so: a shape has frames before its sides."""
    config = Config(timestep_shift=3.0, timestep_shift_by_area=True, timestep_shift_frames=0.5)
    assert choose_shift(config, Scheduler(Path("scheduler"), 2.0, None, ()), False, False, False) == (config, [])
