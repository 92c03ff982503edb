"""Compiled programs kept on disk: where, how many, and that a program read back computes the same bits."""

import importlib.util
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from helpers.training_tiny import run_in, tiny_config
from rfjax.data.loader import batch_of_step
from rfjax.errors import ConfigError
from rfjax.training import compilation_cache
from rfjax.training.compilation_cache import OFF, device_name, shrink, turn_on
from rfjax.training.loss import run_keys
from rfjax.training.optimizer import make_optimizer
from rfjax.training.program import lower_train_step
from rfjax.training.state import init_state

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def settings(compiled_quickly):
    """JAX's settings of its cache, none at first and as they were afterwards."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def gpu():
    return SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize("filelock", (True, False))
def test_a_gpu_keeps_programs_by_default_and_a_cpu_does_not(filelock, monkeypatch, tmp_path):
    """Catches a limit that JAX is given where it cannot keep to it: without filelock it would then keep nothing."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: filelock if name == "filelock" else find(name))
    jax.config.update("jax_compilation_cache_max_size", -1)
    said = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert turn_on(None, said.append) is None and not said and jax.config.jax_compilation_cache_dir is None
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu()])
    folder = turn_on(None, said.append)
    assert folder == tmp_path / "rfjax" / "compiled" / f"jaxlib-{jax.lib.__version__}" / "nvidia-h100-80gb-hbm3"
    assert jax.config.jax_compilation_cache_max_size == (10 * 2**30 if filelock else -1)
    assert len(said) == 1 and str(folder) in said[0] and "10 GiB" in said[0] and "--compilation-cache=off" in said[0]
    jax.config.update("jax_compilation_cache_dir", None)
    assert turn_on(None, said.append) == folder and len(said) == 1  # said once, not at every start


def test_what_the_user_set_wins(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu()])
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert turn_on(None, print) == tmp_path
    assert turn_on(OFF, print) is None and not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_used(monkeypatch, tmp_path):
    """Catches a run that does not begin because the home folder is full or read-only: the default only helps."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--compilation-cache .*file"):
        turn_on(str(tmp_path / "file"), print)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="run.json"):
        turn_on(str(tmp_path / "run"), print)
    said = []
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu()])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert turn_on(None, said.append) is None and "not kept" in said[0]


def test_machines_that_share_a_folder_keep_apart(monkeypatch, tmp_path):
    """Catches machine code for instructions that the other machine's processor does not have."""
    names = []
    for features in ("avx2", "avx2 avx512f"):
        (tmp_path / "cpuinfo").write_text(
            f"processor : 0\nflags : {features}\nbogomips : {len(names)}\n\nprocessor : 1"
        )
        monkeypatch.setattr(compilation_cache, "_CPUINFO", tmp_path / "cpuinfo")
        names.append(device_name("cpu", "cpu"))
    assert names[0] != names[1] and names[0].startswith("cpu-")
    assert device_name("gpu", "NVIDIA H200") == "nvidia-h200"


def test_the_oldest_go_first_over_all_versions(tmp_path):
    """Catches a limit that counts one version's folder alone, and the newest program deleted."""
    for age, (version, name) in enumerate([("a", "new"), ("b", "old"), ("b", "oldest")]):
        folder = tmp_path / version / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-cache").write_bytes(bytes(100))
        (folder / f"{name}-atime").write_bytes(bytes(8))
        os.utime(folder / f"{name}-atime", (1e9 - age, 1e9 - age))
    shrink(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*-*")) == ["new-atime", "new-cache", "old-atime", "old-cache"]
    shrink(tmp_path, 0)
    assert not list(tmp_path.rglob("*-cache"))


def test_a_step_read_back_has_the_same_bits(tmp_path):
    """The step compiled without the cache, compiled into it, and read from it."""
    run = run_in(tmp_path, tiny_config())
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)

    def trained():
        jax.clear_caches()
        jax_cache.reset_cache()
        program = lower_train_step(run).compile()
        state = jax.jit(lambda key: init_state(run.backbone.init, make_optimizer(run.config), key))(
            run_keys(run.config.seed)[0]
        )
        for step in range(3):
            state, _ = program(state, batch_of_step(run.corpus, step, batch_size=run.config.train.batch_size))
        return jax.device_get(state)

    with run.computing():
        plain = trained()
        turn_on(str(tmp_path / "programs"), lambda text: None)
        written = trained()
        assert not hits and list(tmp_path.rglob("jit_step-*-cache"))
        read = trained()
    assert hits
    for other in (written, read):
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True))
