"""The `Run` value: what it is called, what it refuses, what it costs, and how its batches are split."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import child_process
from helpers.bucketed_tiny import SETTINGS, bucketed, flops, pixelwise
from helpers.training_tiny import run_in, tiny_config
from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import check_batch_size, generator_of, prompt_ids, whole_batch
from rfjax.models.flops import training_flops
from rfjax.training.run import describe, make_run, open_run, plan_run

IDS = prompt_ids(3, 2)


def images(run):
    """Latents of three prompts, twice each, sampled in batches that the run's devices share."""
    params = run.backbone.init(jnp.array([0, 1], jnp.uint32))
    conditions = Conditions(*(0.1 * np.ones((len(IDS), *shape), np.float32) for shape in ((2, 8), (8,))))
    generate = generator_of(run, SamplerConfig(steps=2, guidance_scale=2.0), whole_batch(run, 3))
    with run.computing():
        return generate(params, 0, IDS, conditions)


def test_a_run_is_called_by_its_record_then_its_point_then_its_folder(tmp_path):
    """Catches a run that changes its name when its folder is moved, and points of one id in two studies."""
    folder, config = tmp_path / "d2", tiny_config()
    assert plan_run(config, folder).name == "d2" and plan_run(config).name == config.name
    run = make_run(config, folder, study="width", point="d2")
    assert run.name == "width/d2" and describe(run, None)["run"] == "width/d2"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run": "before"}))
    assert plan_run(config, folder).name == make_run(config, folder, study="width", point="d2").name == "before"


def test_what_cannot_be_is_refused_when_the_run_is_made(tmp_path):
    """Before a folder is claimed, whoever makes the run: catches a check that only training has."""
    config = tiny_config({"formulation": "eps/linear", "timestep_shift_by_area": True})
    for made in (make_run, plan_run):
        with pytest.raises(ConfigError, match="timestep_shift_by_area is true"):
            made(config, tmp_path / "run")
    config = tiny_config(SETTINGS | {"model.position_grid": 2})
    with pytest.raises(ConfigError, match="latents of 2x6 have 3 tokens along the width"):
        run_in(tmp_path / "run", config, bucketed(config), pixelwise(config))
    assert not (tmp_path / "run").exists()


def test_opening_refuses_what_would_make_another_run_of_it(tmp_path):
    config = tiny_config()
    with pytest.raises(ConfigError, match="it has no config.json"):
        open_run(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps({"data": {"corpus": "shapes"}}))
    (tmp_path / "run.json").write_text(json.dumps({"run": "study/a"}))
    with pytest.raises(ConfigError, match="config.seed belongs to the training of"):
        open_run(tmp_path, {"seed": 1})
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"corpus_fingerprint": "0" * 64}))
    with pytest.raises(ConfigError, match="another version of the corpus"):  # its losses would be of other data
        open_run(tmp_path, {})
    (tmp_path / "run.json").write_text(json.dumps(record))
    run = open_run(tmp_path, {"timestep_shift": 2.0})
    assert run.name == "study/a" and run.formulation.timestep_shift == 2.0 and run.config.seed == config.seed


def test_flops_are_the_mean_over_steps_and_each_shapes_own(tmp_path):
    """Catches the first bucket's cost, and a mean that weighs buckets alike."""
    config = tiny_config(SETTINGS)
    run, each = run_in(tmp_path, config, bucketed(config), pixelwise(config)), flops(config)
    assert run.flops_of_parts == each and len(set(each)) == 3
    assert run.flops_per_image == round(0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2])
    assert [bucket["flops_per_image"] for bucket in describe(run, None)["buckets"]] == list(each)
    alone = run_in(tmp_path, config, run.corpus.parts[run.largest_part], run.backbone)
    assert alone.flops_per_image == training_flops(config.model, alone.corpus.shapes) == max(each)


SCRIPT = """
import sys
import numpy as np
from test_run import images
from helpers.training_tiny import run_in, tiny_config
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import check_batch_size, whole_batch

run = run_in("run", tiny_config({"evaluation.geneval.batch_size": 6}))
assert run.mesh.size == 4 and len(run.batch_sharding.device_set) == 4 and run.batch_ways == 4
assert whole_batch(run, 3) == 4 and whole_batch(run, 8) == 8
try:
    check_batch_size(run.config, "geneval", run.batch_ways)
except ConfigError as error:
    assert "geneval.batch_size=6 is not divisible by the 4 devices" in str(error)
else:
    raise AssertionError("6 images were split over 4 devices")
np.save(sys.argv[1], images(run))
"""


def test_a_batch_is_split_over_the_devices_of_one_host_and_nothing_changes(tmp_path):
    """Catches a split that only many processes get, and noise that depends on the device."""
    run = run_in(tmp_path, tiny_config({"evaluation.geneval.batch_size": 6}))
    assert run.batch_sharding is None and whole_batch(run, 3) == 3
    check_batch_size(run.config, "geneval", run.batch_ways)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "split.npy")]
    flags = child_process.quick_environment(4)
    flags["PYTHONPATH"] = f"{flags.get('PYTHONPATH', '')}:{__file__.rpartition('/')[0]}"
    done = subprocess.run(command, env=flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "split.npy"), images(run), rtol=1e-5, atol=1e-6)
