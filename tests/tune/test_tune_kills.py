"""A tuning that is really killed: the same command ends with the same bits, the same rows and the same measurements."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from helpers import child_process, tuned_runs
from helpers.training_tiny import rows
from rfjax.errors import RfjaxError
from rfjax.training import checkpoint
from rfjax.tune import held_out
from rfjax.tune.config import to_dict
from rfjax.tune.run import read_tuning

STEPS = 24


def start(base, workdir, config):
    command = [sys.executable, tuned_runs.__file__, f"{base}@7", str(workdir), str(config)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=child_process.quick_environment(), **quiet)


@pytest.mark.full
@pytest.mark.parametrize("method", ["dpo", "nft"])
def test_killed_at_random_a_tuning_ends_with_the_same_bits(base, tmp_path, method):
    """A kill falls into sampling a round, between the rows of a step, into a save, or into what is measured beside.
    Catches images that are made again by another policy, and rows of held-out prompts that are doubled or lost."""
    more = {"method": method, "steps": STEPS, "nft.keep_growth": 0.25, "watch.every": 6}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_dict(tuned_runs.tuning(tmp_path, **more))))
    began = time.monotonic()
    with start(base[0], tmp_path / "undisturbed", config) as process:
        assert process.wait(600) == 0
    length, dice, statuses = time.monotonic() - began, random.Random(0), set()
    for number in range(2):
        workdir = tmp_path / f"killed{number}"
        for _ in range(5):
            with start(base[0], workdir, config) as process:
                deadline = time.monotonic() + dice.uniform(0.2, 1.0) * length
                while time.monotonic() < deadline and process.poll() is None:
                    time.sleep(0.001)
                process.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
                statuses.add(process.wait(600))
        with start(base[0], workdir, config) as process:
            assert process.wait(600) == 0
        facts, expected = (checkpoint.read_facts(path, STEPS) for path in (workdir, tmp_path / "undisturbed"))
        assert facts["checksums"] == expected["checksums"]  # adapter, average, moments, sampling policy
        assert rows(workdir) == rows(tmp_path / "undisturbed")
        assert held_out.read(workdir) == held_out.read(tmp_path / "undisturbed")
    assert statuses <= {0, 75, -signal.SIGKILL, -signal.SIGTERM} and -signal.SIGKILL in statuses


def row(step, value):
    about = {"prompts": "held_out", "guidance_scale": 1.0, "measure": "diversity", "images": 4}
    return {**about, "step": step, "value": value, "low": value, "high": value}


def test_rows_of_a_step_are_added_whole_to_those_before(tmp_path):
    """Catches rows that are lost when a step is added, and a line that an older kill left torn, which would swallow the
    next one."""
    first, second = [row(0, 0.1), row(0, 0.2)], [row(5, 0.3)]
    held_out.add(tmp_path, first)
    with open(tmp_path / held_out.FILE, "a") as file:
        file.write('{"step": 3, "prom')
    held_out.add(tmp_path, second)
    assert held_out.read(tmp_path) == first + second
    assert len((tmp_path / held_out.FILE).read_text().splitlines()) == 3


def test_a_tuning_of_an_older_version_goes_on(tmp_path):
    """Catches a field that is new in the config as a difference from a tuning that was begun before it was there."""
    tune = tuned_runs.tuning(tmp_path)
    values = to_dict(tune)
    del values["votes"]
    (tmp_path / "tune.json").write_text(json.dumps(values))
    assert read_tuning(tmp_path) == tune
    (tmp_path / "tune.json").write_text(json.dumps(values | {"votes": {"folder": 3}}))
    with pytest.raises(RfjaxError, match="holds no tuning"):
        read_tuning(tmp_path)
