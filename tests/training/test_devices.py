"""One device against eight simulated ones, with the real network, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import child_process

MESHES = {
    "one": {},
    "fsdp": {"mesh.data": 2, "mesh.fsdp": 4},
    "slices": {"mesh.slices": 2, "mesh.data": 4, "mesh.fsdp": 2},
    "tensor": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "train.accumulate": 2},
}

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import jax
from rfjax.data.corpus import load_corpus
from rfjax.models.backbone import make_backbone
from rfjax.training import checkpoint
from rfjax.training.loop import train
from rfjax.training.mesh import make_mesh, shardings
from test_devices import MESHES
from helpers.training_tiny import rows, run_in, tiny_config

overrides = {"model.hidden": 32, "model.head_size": 16, "train.steps": 20, "train.log_every": 1,
             "train.batch_size": 16, "train.checkpoint_every": 20, "train.matmul_precision": "highest",
             "train.learning_rate": 1e-3}
overrides |= json.loads(sys.argv[3])
names = sys.argv[4:]
devices = {name: jax.devices()[: 1 if name == "one" else 8] for name in names}
configs = {name: tiny_config(overrides | MESHES[name]) for name in names}
out = {}
for name, config in configs.items():
    corpus = load_corpus(config.data, config.seed)
    workdir = Path(sys.argv[1]) / name
    backbone = make_backbone(config.model, corpus.shapes)
    result = train(run_in(workdir, config, corpus, backbone, devices[name]), log_seconds=1e9)
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(result.state.params)}
    same = []
    for other, target in configs.items():
        mesh = make_mesh(target.mesh, devices[other])
        params, _ = checkpoint.restore_params(workdir, 20, "raw", lambda shapes: shardings(mesh, shapes))
        equal = lambda a, b: len(a.sharding.device_set) == len(devices[other]) and bool(
            (jax.device_get(a) == jax.device_get(b)).all())
        same.append(jax.tree.all(jax.tree.map(equal, params, result.state.params)))
    out[name] = {"rows": rows(workdir), "specs": sorted(specs), "restored": same,
                 "devices": len(result.state.step.sharding.device_set)}
print(json.dumps({"runs": out, "torch": "torch" in sys.modules}))
"""


def check(tmp_path, name, **more):
    """The run of mesh `name` has the losses of one device, and each one's checkpoint restores on
    the other, bit for bit."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parent), json.dumps(more), "one", name]
    flags = child_process.quick_environment(8)
    ended = subprocess.run(command, env=flags, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert not told["torch"]  # training never imports it, nor lets a package that it needs import it
    runs = told["runs"]
    one, many = runs["one"]["rows"], runs[name]["rows"]
    assert (runs["one"]["devices"], runs[name]["devices"], len(one), len(many)) == (1, 8, 20, 20)
    losses = np.array([row["loss"] for row in one])
    np.testing.assert_allclose([row["loss"] for row in many], losses, rtol=1e-5)
    assert losses.std() > 1e-3
    # every example had the same t: the same bins are filled, by the same losses
    by_t = [np.array([row["loss_by_t"] for row in rows], float) for rows in (one, many)]
    np.testing.assert_allclose(by_t[1], by_t[0], rtol=1e-4)
    assert runs["one"]["restored"] == runs[name]["restored"] == [True, True]
    return runs[name]["specs"]


def test_eight_devices_have_the_losses_of_one(tmp_path):
    assert any("fsdp" in spec for spec in check(tmp_path, "fsdp"))


@pytest.mark.full
def test_two_slices_of_four_devices_have_the_losses_of_one(tmp_path):
    assert any("fsdp" in spec for spec in check(tmp_path, "slices"))


@pytest.mark.full
def test_heads_split_over_devices_have_the_losses_of_one(tmp_path):
    assert any("fsdp" in spec and "tensor" in spec for spec in check(tmp_path, "tensor"))


@pytest.mark.full
def test_frames_in_the_batch_split_over_devices_have_the_losses_of_one(tmp_path):
    """Catches frames of a clip that the mesh tears apart, and an attention over time that it does not split."""
    clips = {"data.frames": 4, "model.temporal_patch_size": 2, "model.temporal_attention": "factorised"}
    assert any("fsdp" in spec and "tensor" in spec for spec in check(tmp_path, "tensor", **clips))
