"""A machine or an environment on which JAX cannot compute: one line that names the variables."""

import os

import jax
import pytest

from rfjax import cli
from rfjax.cli import environment
from rfjax.cli.environment import check_devices, import_jax, leave_out_absent_tpu
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
