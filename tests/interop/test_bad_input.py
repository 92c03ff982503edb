"""Damaged and foreign files, and disks that are full: a clear error, and nothing half-written."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.random_runs import SD3_DATA, SD3_MODEL, make_config, make_run
from rfjax.cli import main
from rfjax.config import Config, apply_overrides
from rfjax.data.batch import BatchShapes
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError, RfjaxError
from rfjax.interop.exporting import export_run
from rfjax.interop.expressible import check
from rfjax.interop.importing import import_checkpoint
from rfjax.interop.safetensors_files import Writer


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    """A diffusers folder in several shards."""
    out = tmp_path_factory.mktemp("bad") / "out"
    export_run(runs("plain").folder, layout="diffusers", out=out, max_shard_bytes=2 * 10**6)
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


@pytest.fixture
def damaged(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "damaged")


def refused(source, tmp_path, match, kind=RfjaxError):
    with pytest.raises(kind, match=match):
        import_checkpoint(source, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir() if "run" in path.name] == []


def test_a_truncated_file(damaged, tmp_path):
    shard = sorted(damaged.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(damaged, tmp_path, f"{shard.name} is no whole safetensors file")


def test_a_missing_shard(damaged, tmp_path):
    shard = sorted(damaged.glob("*.safetensors"))[1]
    shard.unlink()
    refused(damaged, tmp_path, f"{shard.name} is missing", ConfigError)


def test_a_flipped_bit_in_our_own_export(damaged, tmp_path):
    shard = sorted(damaged.glob("*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused(damaged, tmp_path, "its checksum differs")


def rewritten(folder, tmp_path, change):
    """The folder as a foreign checkpoint: in one file, without rfjax's manifest, and with changed tensors."""
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    change(tensors)
    out = tmp_path / "theirs"
    out.mkdir()
    save_file(tensors, out / "diffusion_pytorch_model.safetensors")
    shutil.copy(folder / "config.json", out)
    return out


def test_a_tensor_of_another_shape(folder, tmp_path):
    name = "transformer_blocks.1.ff.net.2.weight"

    def change(tensors):
        tensors[name] = tensors[name][:, :-1].copy()

    refused(rewritten(folder, tmp_path, change), tmp_path, rf"{name} is \[128, 511\], not \[128, 512\]", ConfigError)


def test_missing_and_unexpected_tensors_are_listed(folder, tmp_path):
    def change(tensors):
        tensors["transformer_blocks.1.ff.net.9.weight"] = tensors.pop("transformer_blocks.1.ff.net.2.weight")

    match = r"1 missing: transformer_blocks.1.ff.net.2.weight; 1 unexpected: transformer_blocks.1.ff.net.9.weight"
    refused(rewritten(folder, tmp_path, change), tmp_path, match, ConfigError)


def test_tensors_of_no_known_layout(tmp_path):
    save_file({"down_blocks.0.weight": np.zeros(3, np.float32)}, tmp_path / "unet.safetensors")
    refused(
        tmp_path / "unet.safetensors",
        tmp_path,
        "no layout known here has such tensors: down_blocks.0.weight",
        ConfigError,
    )


def test_integers_are_no_weights(folder, tmp_path):
    def change(tensors):
        tensors["proj_out.bias"] = tensors["proj_out.bias"].astype(np.int32)

    refused(rewritten(folder, tmp_path, change), tmp_path, "proj_out.bias .* is of type I32", ConfigError)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch here'\ntR.")
    refused(tmp_path / name, tmp_path, "is a pickle, which can run any code", ConfigError)


def test_a_folder_with_a_pickle_alone(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/diffusion_pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "theirs", tmp_path, "diffusion_pytorch_model.bin is a pickle and is not read", ConfigError)


def test_an_index_that_points_outside(damaged, tmp_path):
    index = damaged / "diffusion_pytorch_model.safetensors.index.json"
    facts = json.loads(index.read_text())
    facts["weight_map"]["proj_out.bias"] = "../../secret.safetensors"
    index.write_text(json.dumps(facts))
    refused(damaged, tmp_path, "names files outside its folder", ConfigError)


def test_a_full_disk_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RfjaxError, match="No space left on device; check the folder and the space left"):
        export_run(runs("plain").folder, layout="diffusers", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    """The disk fails in the middle: the first shards are whole, the export is not."""
    write, calls = Writer.write, []

    def fails(self, name, array):
        calls.append(name)
        if len(calls) == 40:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(self, name, array)

    monkeypatch.setattr(Writer, "write", fails)
    with pytest.raises(RfjaxError, match="Input/output error"):
        export_run(runs("plain").folder, layout="diffusers", out=tmp_path / "out", max_shard_bytes=10**6)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(runs, folder, tmp_path):
    run = runs("plain").folder
    with pytest.raises(ConfigError, match="exists; remove it, or name another"):
        export_run(run, layout="diffusers", out=folder)
    with pytest.raises(ConfigError, match="exists; remove it, or name another"):
        import_checkpoint(folder, run)


def test_float16_does_not_make_infinities(tmp_path):
    with Writer(tmp_path / "a", {"x": (2,)}, "f16", {}) as writer:
        writer.write("x", np.array([1.0, 65504.0], np.float32))
    with pytest.raises(ConfigError, match="x holds 70000, which float16 cannot; use --dtype bf16 or f32"):
        with Writer(tmp_path / "b", {"x": (2,)}, "f16", {}) as writer:
            writer.write("x", np.array([1.0, 70000.0], np.float32))
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="x holds numbers that are not finite; export an earlier step"):
        with Writer(tmp_path / "c", {"x": (2,)}, "f16", {}) as writer:
            writer.write("x", np.array([np.nan, 70000.0], np.float32))


SD3_REFUSALS = {
    "model.hidden": ({"hidden": 128}, {}, "config.model.hidden is 128, .* needs 192"),
    "model.head_size": ({"head_size": 32}, {}, "config.model.head_size is 32, .* needs 64"),
    "model.patch_size": ({"patch_size": 4}, {}, "config.model.patch_size is 4, .* needs 2"),
    "data.channels": ({}, {"channels": 4}, "config.data.channels is 4, .* needs 16"),
    "data.context_size": ({}, {"context_size": 768}, "config.data.context_size is 768, .* needs 4096"),
    "data.pooled_size": ({}, {"pooled_size": 768}, "config.data.pooled_size is 768, .* needs 2048"),
    "model.weight_sets": ({"weight_sets": 3, "first_text_tokens": 2}, {}, "config.model.weight_sets is 3, .* needs 2"),
    "model.qk_norm": ({"dual_attention_blocks": 1}, {}, "config.model.qk_norm is False, .* needs True"),
}


@pytest.mark.parametrize("field", SD3_REFUSALS)
def test_the_single_file_refuses_what_its_readers_would_misread(tmp_path, field):
    model, data, match = SD3_REFUSALS[field]
    run = make_run(tmp_path / "run", make_config(SD3_MODEL | model, SD3_DATA | data))
    with pytest.raises(ConfigError, match=match + ".*use --format diffusers"):
        export_run(run.folder, layout="sd3", out=tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ("edm(-1.20,1.20)", "edm/rf", "eps/linear", "v/cos", "fm/ot(0.00001)"))
def test_what_is_no_rectified_flow_is_refused_by_name(name):
    """Catches a prefix or the last part of the name taken for rf; a remedy that would be refused as well."""
    config = make_config(SD3_MODEL, SD3_DATA, formulation=name)
    shapes = load_corpus(config.data, 0).shapes
    for layout in ("diffusers", "sd3"):
        said = f"config.formulation is {re.escape(name)}, and the {layout} layout needs rf, .*; use --format plain, "
        with pytest.raises(ConfigError, match=said):
            check(layout, config, shapes)
    check("plain", config, shapes)
    for rectified in ("rf", "rf/mode(1.29)", "rf/cosmap"):
        check("diffusers", make_config(SD3_MODEL, SD3_DATA, formulation=rectified), shapes)


@pytest.mark.parametrize("layout", ("plain", "diffusers", "sd3"))
@pytest.mark.parametrize("name", ("dit", "dit_class", "crossdit", "uvit"))
def test_backbones_without_a_pytorch_module_are_refused_by_name(layout, name):
    """Catches a folder of tensors that no module beside it reads."""
    config = apply_overrides(Config(), {"model.backbone": name})
    shapes = BatchShapes(latents=(16, 16, 16), context=(4, 8), pooled=8, encoders=())
    # No layout is suggested that would refuse it as well.
    with pytest.raises(
        ConfigError, match=f"config.model.backbone is {name}, and the {layout} layout needs mmdit.*for another backbone"
    ):
        check(layout, config, shapes)


@pytest.mark.parametrize("layout", ("diffusers", "sd3"))
@pytest.mark.parametrize(
    "overrides, frames, said",
    [
        ({}, 8, "data.frames is 8, and the {} layout needs 1"),
        ({"model.temporal_patch_size": 2}, 1, "model.temporal_patch_size is 2, and the {} layout needs 1"),
        ({"model.temporal_attention": "factorised"}, 8, "model.temporal_attention is factorised, and the {} .* joint"),
        ({"model.positions": "rotary"}, 1, "model.positions is rotary, and the {} layout needs formula"),
    ],
)
def test_networks_of_frames_are_refused_by_name(layout, overrides, frames, said):
    """Catches an export whose readers would take the frames for images, or add positions that it does not have."""
    shapes = BatchShapes(latents=(frames, 16, 16, 16), context=(4, 8), pooled=8, encoders=())
    with pytest.raises(ConfigError, match=f"config.{said.format(layout)}.*use --format plain"):
        check(layout, apply_overrides(Config(), overrides), shapes)
    check("plain", apply_overrides(Config(), overrides), shapes)  # what is suggested is not refused


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    (tmp_path / "model.ckpt").write_bytes(b"")
    assert main(["import", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rfjax: ") and error.count("\n") == 1


def test_no_room_for_an_import(folder, tmp_path, monkeypatch):
    """Catches a checkpoint begun on a disk that cannot hold it."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    refused(folder, tmp_path, "run needs .* GiB and 0.00 GiB are free; make room first")


MALFORMED = {
    "positions": (
        lambda tensors: tensors.update({"pos_embed.pos_embed": np.zeros((4, 8), np.float32)}),
        r"pos_embed.pos_embed has the shape \[4, 8\]",
    ),
    "numbers": (
        lambda tensors: tensors["proj_out.bias"].fill(np.nan),
        "proj_out.bias holds numbers that are not finite",
    ),
    "blocks": (
        lambda tensors: tensors.update({"transformer_blocks.999999999.x": np.zeros(1, np.float32)}),
        "blocks are 0, 1, 2, 3, 999999999, and an MM-DiT's are 0, 1, 2",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_tensors_that_no_network_has(folder, tmp_path, what):
    change, match = MALFORMED[what]
    refused(rewritten(folder, tmp_path, change), tmp_path, match, ConfigError)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("config.json", "[1]", "its content must be an object and is a list"),
        ("config.json", '{"_class_name": "FluxTransformer2DModel"}', "is the config of a FluxTransformer2DModel"),
        (
            "rfjax.json",
            '{"schema": 1, "layout": "diffusers", "sha256": null, "config": {}}',
            "rfjax.json cannot be read: sha256 must be an object and is null.*remove it",
        ),
        ("diffusion_pytorch_model.safetensors.index.json", "{}", "has no weight_map"),
    ],
)
def test_malformed_json_beside_the_tensors(damaged, tmp_path, name, text, match):
    (damaged / name).write_text(text)
    refused(damaged, tmp_path, match)


def test_a_runs_own_folder_and_other_files_are_not_imported(runs, damaged, tmp_path):
    refused(runs("plain").folder, tmp_path, "is already a run of rfjax.*--init", ConfigError)
    refused(damaged / "config.json", tmp_path, "is no safetensors file", ConfigError)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_of_files_that_cannot_be(runs, tmp_path, size):
    with pytest.raises(ConfigError, match="give --max-shard-gb a positive number"):
        export_run(runs("plain").folder, layout="diffusers", out=tmp_path / "out", max_shard_bytes=size)


def test_a_terminated_export_leaves_nothing_behind(runs, tmp_path):
    """SIGTERM's default ends the process at once, and gigabytes stay under a hidden name."""
    code = (
        "import os, signal, sys\n"
        "from rfjax.interop.safetensors_files import Writer\n"
        "Writer.write = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from rfjax.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["export", str(runs("plain").folder), "--format", "diffusers", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        (b"<!DOCTYPE html>", "download link"),
        (b"", "again"),
    ],
)
def test_what_lies_in_a_files_place_is_named(tmp_path, content, remedy):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(RfjaxError, match=f"a.safetensors is no whole safetensors file.*{remedy}"):
        import_checkpoint(tmp_path / "a.safetensors", tmp_path / "out")
