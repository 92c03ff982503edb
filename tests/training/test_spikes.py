"""The detector of spikes: silent on noise, loud on what goes wrong, and the same after a resumption."""

import json

import numpy as np
import pytest

from helpers.training_tiny import tiny_train
from rfjax.errors import Diverged
from rfjax.training.monitor import last_good, way_back
from rfjax.training.spikes import LEAST, QUIET, SpikeDetector


def seen(values, detector=None, name="loss"):
    """(step, warning) of every warning over the values, as steps from 1 on."""
    detector = detector or SpikeDetector()
    found = [(step, detector.see(step, {name: float(value)})) for step, value in enumerate(values, 1)]
    return [(step, text) for step, texts in found for text in texts]


def noise(steps, sigma, seed=0):
    return np.exp(np.random.default_rng(seed).normal(0, sigma, steps))


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.3])
def test_noise_and_a_falling_loss_give_no_warning(sigma):
    """Catches a limit so low that a user learns to ignore it: the losses of small batches are noisy."""
    assert not seen((0.5 + 2 * np.exp(-np.arange(3000) / 500)) * noise(3000, sigma))
    assert not seen(noise(3000, sigma, 1), name="gradient norm")


def test_a_spike_is_told_once_with_its_size():
    values = noise(500, 0.1)
    values[200:203] = 20
    [(step, text)] = seen(values, name="gradient norm")
    assert step == 201 and "gradient norm is 20," in text and "median over the 128 steps" in text
    values[200 + QUIET + 10] = 20  # another one, when the first is told
    assert [step for step, _ in seen(values, name="gradient norm")] == [201, 201 + QUIET + 10]


def test_a_slow_climb_is_told_though_no_step_stands_out():
    """Catches a memory that climbs along with the loss."""
    values = np.concatenate([noise(200, 0.02), np.exp(0.01 * np.arange(200)) * noise(200, 0.02, 1)])
    [(step, text), *_] = seen(values)
    assert 240 < step < 290 and "climbed" in text


def test_what_is_not_finite_and_the_first_steps_are_passed_over():
    assert not seen([1.0] * (LEAST - 2) + [np.nan, np.inf, 50.0])
    assert seen([0.0] * LEAST + [1.0])  # a median of zero has no logarithm


def test_a_resumed_detector_warns_where_an_uninterrupted_one_does():
    values = np.concatenate([noise(150, 0.1), [9], noise(60, 0.1, 1), [9], 2 * noise(120, 0.1, 2), [30]])
    whole, stopped = SpikeDetector(), SpikeDetector()
    expected = seen(values, whole)
    found = seen(values[:200], stopped)
    resumed = SpikeDetector(json.loads(json.dumps(stopped.memory())))
    found += [(step + 200, text) for step, text in _from(values[200:], resumed)]
    assert found == expected and len(expected) >= 2 and resumed.memory() == whole.memory()


def _from(values, detector):
    found = [(place, detector.see(place + 200, {"loss": float(value)})) for place, value in enumerate(values, 1)]
    return [(place, text) for place, texts in found for text in texts]


def test_a_canary_is_warned_of_before_it_diverges(tmp_path, capfd):
    """A run whose rate grows until its loss overflows. The warning comes before, is shown, and is kept beside the
    curve; the way back is named as a command."""
    rates = {"train.learning_rate": 300.0, "train.warmup_steps": 600, "train.steps": 600}
    with pytest.raises(Diverged) as told:
        tiny_train(tmp_path / "canary", rates | {"train.checkpoint_every": 20})
    rows = [json.loads(line) for line in (tmp_path / "canary" / "diagnostics.jsonl").read_text().splitlines()]
    diverged = int(str(told.value).split("up to step ")[1].split(";")[0])
    assert rows[0]["step"] <= LEAST + 20 and rows[0]["step"] < diverged - 10 and "warning" in rows[0]
    assert f"step {rows[0]['step']}: {rows[0]['warning']}" in capfd.readouterr().err
    good = last_good(tmp_path / "canary")
    assert f"--branch={tmp_path / 'canary'}@{good} --skip-batches={150 - good} " in way_back(tmp_path / "canary", 50)
    assert way_back(tmp_path, 50) == ""  # without a checkpoint there is no way back
