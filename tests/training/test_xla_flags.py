"""The compiler's flags: which are set for what, the user's that win, and a compiler that does not know one."""

import subprocess
import sys

import jaxlib
import pytest

from rfjax.training import xla_flags
from rfjax.training.xla_flags import FLAGS, Flag, choose_flags, flag_names, flags_for, flags_in_force, is_known

VERSION = (0, 10, 2)
CUDA = [str(flag) for flag in flags_for("cuda", VERSION)]


def known(platform, flags):
    return True


def test_a_row_is_for_its_platform_and_its_versions(monkeypatch):
    """Catches a comparison of versions as texts, in which 0.9 comes after 0.10, and an end that is included."""
    row = Flag(platform="cuda", name="xla_gpu_x", value="true", since=(0, 10), before=(0, 12), why="", source="")
    monkeypatch.setattr(xla_flags, "FLAGS", (row,))
    versions = [(0, 9, 9), (0, 10), (0, 10, 2), (0, 11, 3), (0, 12, 0)]
    assert [bool(flags_for("cuda", version)) for version in versions] == [False, True, True, True, False]
    assert flags_for("cpu", (0, 10)) == flags_for("tpu", (0, 10)) == ()


def test_what_the_user_set_wins():
    """Catches a second value for a flag of the user's, and a user's flag that is dropped."""
    name = flags_for("cuda", VERSION)[0].name
    given = {"XLA_FLAGS": f"--{name}=false --xla_dump_to=/tmp/x"}
    chosen = choose_flags("cuda", VERSION, given, known)
    assert chosen.added == tuple(CUDA[1:])
    environ = dict(given)
    xla_flags.add_flags(environ, "cuda", chosen.added)
    assert environ["XLA_FLAGS"].endswith(given["XLA_FLAGS"]) and environ["XLA_FLAGS"].count(name) == 1
    assert flags_in_force(environ) == {"rfjax": CUDA[1:], "user": given["XLA_FLAGS"].split()}
    xla_flags.remove_flags(environ)
    assert environ == given


def test_a_file_of_flags_and_a_cpu_are_left_alone():
    """XLA reads a file of flags where XLA_FLAGS does not begin with a dash: flags before its name would hide it."""
    for platform, given in (("cuda", {"XLA_FLAGS": "flags.txt"}), ("cpu", {}), ("rocm", {})):
        assert choose_flags(platform, VERSION, given, known).added == ()


def test_a_flag_that_the_compiler_does_not_know_is_left_out_alone():
    odd = CUDA[1]
    chosen = choose_flags("cuda", VERSION, {}, lambda platform, flags: odd not in flags.split())
    assert chosen.unknown == (odd,) and chosen.added == tuple(flag for flag in CUDA if flag != odd)


def test_the_compiler_itself_is_asked():
    """Catches a probe that takes every flag, or none: XLA ends the process at an unknown one."""
    assert is_known("cuda", " ".join(CUDA))
    assert not is_known("cuda", f"{CUDA[0]} --xla_gpu_no_such_flag=true")


def test_the_probe_does_not_read_the_users_flags(monkeypatch):
    """Catches all of rfjax's flags left out because of a user's flag that is wrong, which JAX is to name itself."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_no_such_flag=true")
    assert is_known("cuda", CUDA[0])


def test_a_slow_probe_is_a_yes(monkeypatch):
    """Catches two processes of a job with unlike flags, because one of them was on a slow disk."""

    def late(*_, **__):
        raise subprocess.TimeoutExpired("probe", 1)

    monkeypatch.setattr(subprocess, "run", late)
    assert is_known("cuda", CUDA[0])


def test_every_row_says_why_and_whence():
    assert all(flag.why and flag.source and flag.name.startswith("xla_") for flag in FLAGS)
    names = [(flag.platform, flag.name, flag.since) for flag in FLAGS]
    assert len(names) == len(set(names))
    assert flag_names("--a=1 --b  stray -c=2") == {"a", "b", "c"}
    assert xla_flags.jaxlib_version() == tuple(int(part) for part in jaxlib.__version__.split(".")[:3])


@pytest.mark.parametrize("module", ["xla_flags"])
def test_flags_are_chosen_without_jax(module):
    """They must stand in the environment before JAX is imported."""
    script = f"import sys; sys.modules['jax'] = None; import rfjax.training.{module}"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
