"""A machine or an environment on which JAX cannot compute: one line that names the variables."""

import os
import sys
from types import SimpleNamespace

import jax
import pytest

from rfjax import cli
from rfjax.cli import environment
from rfjax.cli.environment import check_devices, import_jax, leave_out_absent_tpu, set_xla_flags
from rfjax.cli.platform_here import platform_here
from rfjax.cli.processes import check_same_flags
from rfjax.errors import ConfigError

REFUSALS = {
    "bogus": RuntimeError("Unable to initialize backend 'bogus': unknown. (set JAX_PLATFORMS='' to choose)\nmore"),
    "no word": AssertionError(),
    "several lines": RuntimeError("first\nsecond"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_no_device_is_one_line_with_the_variables_to_mend(monkeypatch, what):
    """Catches a traceback of JAX under a bogus JAX_PLATFORMS, or a CUDA_VISIBLE_DEVICES that is empty."""

    def refuse():
        raise REFUSALS[what]

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "bogus")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError) as told:
        check_devices()
    said = str(told.value)
    assert "CUDA_VISIBLE_DEVICES=''" in said and "JAX_PLATFORMS='bogus'" in said and "mend or unset" in said
    assert "\n" not in said and "set JAX_PLATFORMS=''" not in said


def test_zero_devices_are_none(monkeypatch):
    monkeypatch.setattr(jax, "devices", list)
    with pytest.raises(ConfigError, match="JAX has no device to compute on; "):
        check_devices()


@pytest.mark.parametrize("words", ["train --config=shapes --workdir=w", "bench --config=shapes", "export r --out=x"])
def test_every_verb_that_computes_asks_for_a_device_first(monkeypatch, tmp_path, words, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "devices", list)
    words += " --format=plain" if words.startswith("export") else ""
    assert cli.main(words.split()) == 2
    assert "JAX has no device to compute on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_empty_platform_is_no_platform(monkeypatch, tmp_path):
    """Catches five lines of libtpu's warnings under JAX_PLATFORMS=, which JAX takes for unset."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    environ = {"JAX_PLATFORMS": ""}
    leave_out_absent_tpu(environ, tmp_path)
    assert environ == {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("uses_device, platform", [(False, "cpu"), (True, None)])
def test_a_command_without_a_device_tries_no_plugin(monkeypatch, uses_device, platform):
    """Catches `rfjax plan` that prints a traceback of the CUDA plugin where there is no GPU, and takes a GPU where
    there is one: the platform was named after JAX had read it."""
    monkeypatch.setattr(environment, "_use_huge_pages", lambda: None)
    monkeypatch.setattr(environment, "leave_out_absent_tpu", lambda environ: None)
    monkeypatch.setattr(environment, "set_xla_flags", lambda environ, wanted: None)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    environment.prepare_process(uses_device)
    assert (os.environ["JAX_PLATFORMS"] or None) == platform


@pytest.mark.parametrize("setting", ["jax_enable_x64", "jax_disable_jit"])
def test_settings_under_which_nothing_can_be_computed_are_refused_by_name(setting):
    """Catches fifty lines of JAX under JAX_ENABLE_X64 and JAX_DISABLE_JIT."""
    before = getattr(jax.config, setting)
    jax.config.update(setting, True)
    try:
        with pytest.raises(ConfigError, match=f"{setting.upper()} is on, and .*; unset it"):
            import_jax()
    finally:
        jax.config.update(setting, before)


def plugins(monkeypatch, *names, libtpu=False):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [SimpleNamespace(name=name) for name in names])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: libtpu and name == "libtpu" or None)


def devices(folder, *kinds):
    for number, (vendor, kind) in enumerate(kinds):
        (folder / f"{number}").mkdir(parents=True)
        (folder / f"{number}" / "vendor").write_text(f"{vendor}\n")
        (folder / f"{number}" / "class").write_text(f"{kind}\n")
    return folder


def test_the_platform_is_known_without_jax(monkeypatch, tmp_path):
    """Catches a TPU seen in the disk or the network card of a machine of Google's, a GPU that no plugin or a variable
    lets JAX use, and a platform that the user named and rfjax did not heed."""
    nvidia, absent = (tmp_path,), (tmp_path / "absent",)
    plugins(monkeypatch, "xla_cuda13")
    assert platform_here({}, tmp_path, nvidia) == "cuda" and platform_here({}, tmp_path, absent) == "cpu"
    assert platform_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path, nvidia) == "cpu"
    assert platform_here({"JAX_PLATFORMS": "cpu"}, tmp_path, nvidia) == "cpu"
    plugins(monkeypatch, libtpu=True)
    assert platform_here({}, tmp_path, nvidia) == "cpu"
    google = "0x1ae0"
    cards = devices(tmp_path / "cards", (google, "0x020000"), (google, "0x010802"), ("0x8086", "0x060000"))
    chip = devices(tmp_path / "chip", (google, "0x020000"), (google, "0xff0000"))
    assert platform_here({}, cards, absent) == "cpu" and platform_here({}, chip, absent) == "tpu"
    assert platform_here({"JAX_PLATFORMS": "gpu,cpu"}, chip, absent) == "cuda"


def test_flags_are_set_once_for_the_platform_that_is_here(monkeypatch, capsys):
    """Catches a second probe when the process starts itself again for huge pages, and flags under --no-xla-flags."""
    asked = []

    def known(platform, flags):
        asked.append(platform)
        return "all_reduce" not in flags

    environ = {"JAX_PLATFORMS": "cuda"}
    set_xla_flags(environ, True, known)
    set, probes = dict(environ), len(asked)
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in set["XLA_FLAGS"] and "all_reduce" not in set["XLA_FLAGS"]
    assert "does not take --xla_gpu_enable_pipelined_all_reduce=true" in capsys.readouterr().err
    set_xla_flags(environ, True, known)
    assert environ == set and len(asked) == probes
    set_xla_flags(environ, False, known)
    assert environ == {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""}
    environ = {"JAX_PLATFORMS": "cpu"}
    set_xla_flags(environ, True, known)
    assert environ == {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("words, wanted", [([], True), (["--no-xla-flags"], False)])
def test_the_command_line_sets_the_flags_before_jax(monkeypatch, words, wanted):
    """Catches the option that is parsed and not passed on."""
    said = []
    monkeypatch.setattr(cli, "prepare_process", lambda *given: said.append(given))
    monkeypatch.setattr(sys, "argv", ["rfjax", "bench", "--config=shapes", "--steps=0", *words])
    monkeypatch.setattr(cli, "make_unfailing", lambda: None)
    monkeypatch.setattr(cli, "quiet_background", lambda: None)
    assert cli.main() == 2 and said == [(True, wanted)]


def test_processes_with_unlike_flags_are_refused(monkeypatch):
    """Catches a job that hangs in its first exchange, because two compilers ordered the exchanges in two ways."""
    from rfjax.training.processes import distributed

    monkeypatch.setattr(distributed, "everyones", lambda word: [word, "--xla_a=true"])
    monkeypatch.delenv("RFJAX_XLA_FLAGS", raising=False)
    with pytest.raises(ConfigError, match="--no-xla-flags"):
        check_same_flags()
    monkeypatch.setenv("RFJAX_XLA_FLAGS", "--xla_a=true")
    check_same_flags()
