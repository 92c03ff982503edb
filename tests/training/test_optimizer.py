import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.config import Config, TrainConfig
from rfjax.config_rules import READ_BY_SCHEDULES
from rfjax.limits import CHOICES
from rfjax.training.optimizer import SCHEDULES, decayed, learning_rate, make_optimizer, warmup_advice

PEAK, STEPS, WARMUP, END = 3e-3, 100, 10, 0.1


# schedule -> its fraction of the peak rate at a step after the warm-up
CLOSED_FORMS = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: END + (1 - END) * (1 + math.cos(math.pi * max(0.0, (step - WARMUP) / (STEPS - WARMUP)))) / 2,
    "wsd": lambda step: 1.0 if step < 75 else 1.0 - (1 - END) * (step - 75) / 25,  # the last quarter is a line
}


def closed_form(schedule, step):
    return PEAK * min(1.0, (step + 1) / WARMUP) * CLOSED_FORMS[schedule](step)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_their_closed_forms(schedule):
    config = TrainConfig(
        schedule=schedule,
        learning_rate=PEAK,
        steps=STEPS,
        warmup_steps=WARMUP,
        final_learning_rate_fraction=END,
        decay_fraction=0.25,
    )
    rate = learning_rate(config)
    got = [float(rate(jnp.int32(step))) for step in range(STEPS)]
    np.testing.assert_allclose(got, [closed_form(schedule, step) for step in range(STEPS)], rtol=1e-5)


def changed(field):
    """Another value of a field of `TrainConfig`; None for a field that is neither a number nor a choice."""
    value, choices = field.default, CHOICES.get(f"train.{field.name}", ())
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, int | float):
        return type(value)(value / 2 + 4) if isinstance(value, int) else value / 3 + 0.05
    return None


def test_the_table_says_which_schedules_read_a_field():
    """Catches a new schedule whose own field is refused as not read, and a field that a schedule ignores in silence."""
    steps = jnp.arange(STEPS)
    base = {"steps": STEPS, "final_learning_rate_fraction": END}
    rates = {name: learning_rate(TrainConfig(schedule=name, **base))(steps) for name in SCHEDULES}
    for field in dataclasses.fields(TrainConfig):
        if field.name == "schedule" or (value := changed(field)) is None:
            continue
        assert value != base.get(field.name, field.default), field.name
        other = {name: TrainConfig(schedule=name, **base | {field.name: value}) for name in SCHEDULES}
        readers = tuple(n for n in SCHEDULES if np.any(learning_rate(other[n])(steps) != rates[n]))
        if readers not in ((), tuple(SCHEDULES)):
            said = READ_BY_SCHEDULES.get(f"train.{field.name}")
            assert said == readers, f"train.{field.name} is read by {readers}; READ_BY_SCHEDULES has {said}"


def test_no_warmup_starts_at_the_peak():
    rate = learning_rate(TrainConfig(learning_rate=PEAK, warmup_steps=0))
    assert float(rate(jnp.int32(0))) == pytest.approx(PEAK)


def test_a_warmup_that_outlasts_a_short_run_is_said():
    """Catches a trial of 40 steps of a config with 100 steps of warm-up, which trains at a fortieth of its rate."""
    short = TrainConfig(steps=40, warmup_steps=100, schedule="constant", learning_rate=2e-3)
    assert "highest learning rate is 0.0008" in warmup_advice(short) and "warmup_steps=4" in warmup_advice(short)
    assert warmup_advice(dataclasses.replace(short, steps=200)) is None
    assert warmup_advice(dataclasses.replace(short, warmup_steps=-1)) is None


def test_updates_are_adamw_after_clipping():
    config = TrainConfig(clip_norm=1.0, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    rng = np.random.default_rng(0)
    # stacked biases are matrices by rank, which must not make them decay
    params = {"a": {"kernel": rng.normal(size=(2, 3, 4)), "bias": rng.normal(size=(2, 4))}}
    params = {"a": {name: value.astype(np.float32) for name, value in params["a"].items()}}
    optimizer = make_optimizer(Config(train=config))
    state = optimizer.init(params)
    mean = {name: 0.0 for name in params["a"]}
    square = dict(mean)
    for count in range(1, 4):
        grads = {name: (10.0 * rng.normal(size=value.shape)).astype(np.float32) for name, value in params["a"].items()}
        norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in grads.values()))
        updates, state = optimizer.update({"a": grads}, state, params)
        for name, grad in grads.items():
            grad = grad / max(1.0, norm)
            mean[name] = 0.9 * mean[name] + 0.1 * grad
            square[name] = 0.99 * square[name] + 0.01 * grad**2
            expected = mean[name] / (1 - 0.9**count) / (np.sqrt(square[name] / (1 - 0.99**count)) + 1e-8)
            expected = expected + (0.1 * params["a"][name] if name == "kernel" else 0.0)
            np.testing.assert_allclose(updates["a"][name], expected, rtol=2e-4, atol=1e-5)


def test_decay_spares_biases_and_norm_scales():
    tree = {"blocks": {"qkv": {"kernel": 0, "bias": 0}, "query_norm": {"scale": 0}}}
    assert decayed(tree) == {"blocks": {"qkv": {"kernel": True, "bias": False}, "query_norm": {"scale": False}}}
