"""Imports: runs that can be trained on, sampled from and evaluated; and rfjax's own exports."""

import json

import jax
import numpy as np
import pytest

from helpers.random_runs import DATA, MODEL, make_config, make_run
from rfjax import config as schema
from rfjax.cli import main
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.evaluate import evaluate_run
from rfjax.interop.exporting import export_run
from rfjax.interop.importing import import_checkpoint
from rfjax.study.run import run_config
from rfjax.training.checkpoint import restore_params, steps_saved
from rfjax.training.lineage import read_parent

TRAIN = {
    "steps": 2,
    "batch_size": 4,
    "warmup_steps": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "learning_rate": 1e-3,
    "ema_every": 1,
}
EVALUATION = {"geneval": {"prompts_per_task": 0}, "validation": {"examples": 4, "batch_size": 4}}
SHAPES = {"corpus": "shapes", "image_size": 16}
SMALL = MODEL | {"depth": 2, "head_size": 32, "patch_size": 4, "position_grid": 6, "position_tokens": 4}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(the run that was exported, its import): the default corpus, so that there are captions to sample."""
    folder = tmp_path_factory.mktemp("imported")
    config = make_config(SMALL, SHAPES, train=TRAIN, evaluation=EVALUATION)
    run = make_run(folder / "run", config)
    export_run(run.folder, layout="plain", out=folder / "out", max_shard_bytes=10**6)
    assert len(list((folder / "out").glob("model-*.safetensors"))) > 1
    assert import_checkpoint(folder / "out", folder / "back").config == config
    return run, folder / "back"


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_our_own_export_comes_back_bit_by_bit(imported):
    """Catches shards read in the wrong order; raw weights exported for the average."""
    run, back = imported
    for weights in ("ema", "raw"):
        params, facts = restore_params(back, 0, weights)
        assert all(map(np.array_equal, leaves(params), leaves(run.params)))
    assert (facts["images"], facts["flops"]) == (96, 1e6)


def test_raw_weights_are_exported_when_asked_for(imported, tmp_path):
    """Catches --weights ignored."""
    run, _ = imported
    export_run(run.folder, layout="plain", out=tmp_path / "raw", weights="raw")
    import_checkpoint(tmp_path / "raw", tmp_path / "back")
    params, _ = restore_params(tmp_path / "back", 0, "ema")
    assert all(map(np.array_equal, leaves(params), leaves(run.raw)))


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("f16", 11)])
def test_smaller_types_round_and_come_back_as_written(imported, tmp_path, dtype, bits):
    """Catches a cast that truncates, or a file that says one type and holds another."""
    run, _ = imported
    export_run(run.folder, layout="diffusers", out=tmp_path / "out", dtype=dtype)
    import_checkpoint(tmp_path / "out", tmp_path / "back")
    params, _ = restore_params(tmp_path / "back", 0, "ema")
    for rounded, exact in zip(leaves(params), leaves(run.params), strict=True):
        np.testing.assert_allclose(rounded, exact, rtol=2.0**-bits, atol=1e-7)
    export_run(tmp_path / "back", layout="diffusers", out=tmp_path / "again", dtype=dtype)
    digests = [json.loads((tmp_path / name / "rfjax.json").read_text())["sha256"] for name in ("out", "again")]
    assert digests[0] == digests[1]


def test_training_goes_on_from_an_import_and_counts_what_it_has_seen(imported):
    """Catches a start from fresh weights; images of the life before the import lost, and its data seen again."""
    run, back = imported
    assert main(["train", f"--config={back}/config.json", f"--workdir={back}"]) == 0
    assert steps_saved(back)[-1] == 2
    record = json.loads((back / "run.json").read_text())
    assert record["images"] == 96 + 2 * TRAIN["batch_size"]
    moved = [
        np.abs(new - old).max()
        for new, old in zip(leaves(restore_params(back, 2, "raw")[0]), leaves(run.params), strict=True)
    ]
    assert 0 < max(moved) < 0.1  # two steps away from the imported weights, not from random ones
    assert read_parent(str(back)).images == 96 + 2 * TRAIN["batch_size"]


def test_an_import_is_sampled_and_evaluated(imported, tmp_path):
    """Catches a folder that training understands and the other verbs do not."""
    run, _ = imported
    export_run(run.folder, layout="diffusers", out=tmp_path / "out")
    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    picture = tmp_path / "samples.png"
    words = [
        "sample",
        str(tmp_path / "back"),
        "--prompt",
        "a photo of a green square",
        "--samples",
        "1",
        "--sigmas",
        "diffusers",
    ]
    assert main([*words, "--out", str(picture), "--config.evaluation.sampler.steps=2"]) == 0
    assert json.loads(picture.with_suffix(".json").read_text())["sampler"] == "euler-2-cfg5-shift1-diffusers"
    records = evaluate_run(tmp_path / "back", {}, step=None, weights="ema")
    assert [record["key"]["evaluation"] for record in records] == ["validation"]
    assert records[0]["images"] == 96


def test_stored_positions_stay_as_they_are(tmp_path):
    """Catches positions trained, decayed, averaged or clipped: an imported grid must be that of the import."""
    model = SMALL | {"positions": "stored"}
    run = make_run(
        tmp_path / "run", make_config(model, SHAPES, train=TRAIN | {"weight_decay": 0.1}, evaluation=EVALUATION)
    )
    export_run(run.folder, layout="diffusers", out=tmp_path / "out")
    back = tmp_path / "back"
    imported = import_checkpoint(tmp_path / "out", back)
    assert imported.config.model.positions == "stored"
    run_config(imported.config, back, evaluate=False)
    for weights in ("ema", "raw"):
        params, _ = restore_params(back, 2, weights)
        np.testing.assert_array_equal(params["positions"], run.params["positions"])
        assert not np.array_equal(params["patch_embed"]["kernel"], run.params["patch_embed"]["kernel"])


def test_a_config_that_contradicts_the_tensors_is_refused_by_name(imported, tmp_path):
    """Catches an import that trains another network than it read."""
    run, _ = imported
    export_run(run.folder, layout="diffusers", out=tmp_path / "out")
    other = schema.apply_overrides(run.config, {"model.depth": 3})
    with pytest.raises(ConfigError, match="config.model.depth is 3 and should be 2"):
        import_checkpoint(tmp_path / "out", tmp_path / "back", base=other)
    with pytest.raises(
        ConfigError, match="context_size is .* in the corpus and .* in the network; give --config.data.corpus=NAME"
    ):
        foreign = make_run(tmp_path / "foreign", make_config(SMALL, DATA | {"channels": 3}))
        export_run(foreign.folder, layout="diffusers", out=tmp_path / "foreign_out")
        import_checkpoint(tmp_path / "foreign_out", tmp_path / "back", overrides={"data.corpus": "shapes"})
    assert not (tmp_path / "back").exists()


def test_the_file_inside_a_folder_is_read_as_the_folder(imported, tmp_path):
    """Catches heads of 64 taken for granted: another network of the same tensors, and no error."""
    run, _ = imported
    out = export_run(run.folder, layout="diffusers", out=tmp_path / "out")
    (out / "rfjax.json").unlink()
    sizes = {"data.corpus": "shapes"}
    weights = out / "diffusion_pytorch_model.safetensors"
    assert import_checkpoint(weights, tmp_path / "with", overrides=sizes).config.model.heads == 4
    (out / "config.json").unlink()
    with pytest.raises(ConfigError, match="nothing says the size of a head.*--config.model.head_size=N"):
        import_checkpoint(weights, tmp_path / "without", overrides=sizes)
    told = import_checkpoint(weights, tmp_path / "told", overrides=sizes | {"model.head_size": "32"})
    assert told.config.model.heads == 4


def test_a_schedulers_shift_is_taken_over(imported, tmp_path):
    """Catches samples drawn at other times than the model was trained for."""
    run, _ = imported
    pipeline = tmp_path / "pipeline"
    export_run(run.folder, layout="diffusers", out=pipeline / "transformer")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler/scheduler_config.json").write_text('{"shift": 2.5}')
    (pipeline / "transformer/rfjax.json").unlink()
    config = import_checkpoint(pipeline, tmp_path / "back").config
    assert (config.timestep_shift, config.name) == (2.5, "pipeline")


def test_a_damaged_checkpoint_of_an_import_falls_back_to_the_import(imported, tmp_path, capfd):
    """Catches a run that cannot go on though the weights it began with are whole."""
    run, _ = imported
    export_run(run.folder, layout="plain", out=tmp_path / "out")
    back = tmp_path / "back"
    config = import_checkpoint(tmp_path / "out", back, overrides={"train.checkpoint_every": 2}).config
    run_config(config, back, evaluate=False)
    before = leaves(restore_params(back, 2, "raw")[0])
    assert steps_saved(back) == [0, 2]
    for file in (back / "checkpoints/2").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff" * 64)
    (back / "status.json").unlink()
    run_config(config, back, evaluate=False)
    assert "fell back to the checkpoint of step 0" in capfd.readouterr().err
    assert all(map(np.array_equal, before, leaves(restore_params(back, 2, "raw")[0])))


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    """Catches weights that nobody trained, under a manifest that vouches for them."""
    run = make_run(tmp_path / "run", make_config(SMALL, SHAPES))
    facts = next(
        path
        for path in (run.folder / "checkpoints/3/facts").rglob("*")
        if path.is_file() and "checksums" in path.read_text()
    )
    content = json.loads(facts.read_text())
    content["checksums"]["ema/final/linear/bias"] ^= 1
    facts.write_text(json.dumps(content))
    with pytest.raises(RfjaxError, match="is damaged: the checksum of its facts differs"):
        export_run(run.folder, layout="plain", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
