"""The names of choices and the tables that implement them; the fields that the tables of limits name."""

import math
import re
from operator import attrgetter

import pytest

from rfjax import limits
from rfjax.config import Config, apply_overrides
from rfjax.data.corpus import CORPORA
from rfjax.errors import ConfigError
from rfjax.evaluation.paired_loss import GRIDS
from rfjax.flow.samplers import EVALUATIONS_PER_STEP, METHODS, SIGMAS
from rfjax.models.attention import IMPLEMENTATIONS
from rfjax.models.flops import RECOMPUTED
from rfjax.models.stack import REMAT_POLICIES
from rfjax.plan.estimate import KEPT
from rfjax.training.optimizer import SCHEDULES


@pytest.mark.parametrize(
    "field, table",
    [
        ("data.corpus", CORPORA),
        ("train.schedule", SCHEDULES),
        ("train.remat", {"none", *REMAT_POLICIES}),
        ("train.remat", RECOMPUTED),
        ("train.remat", KEPT),
        ("train.attention", {"auto", *IMPLEMENTATIONS}),
        ("evaluation.sampler.method", METHODS),
        ("evaluation.sampler.method", EVALUATIONS_PER_STEP),
        ("evaluation.sampler.sigmas", SIGMAS),
        ("evaluation.validation.grid", GRIDS),
    ],
)
def test_a_choice_has_the_names_of_the_table_that_implements_it(field, table):
    """Catches a row that no config can choose, and a choice that ends in a KeyError."""
    assert set(limits.CHOICES[field]) == set(table)


def test_limits_name_fields_that_there_are():
    """Catches a renamed field whose rule would end in an AttributeError, and a default outside its own limits."""
    config = Config()
    networks = limits.BACKBONES.values()
    fields = {*limits.CHOICES, *limits.RANGES, *(field for row in limits.DIVISORS for field in row[:1])}
    fields |= {field for rules in (limits.RULES, *(n.rules for n in networks)) for row in rules for field in row[0]}
    fields |= {f"model.{field}" for network in networks for field in network.own_fields}
    for field in fields:
        attrgetter(field)(config)
    limits.check(config)


@pytest.mark.parametrize(
    "allowed, inside, outside, text",
    [
        (limits.Range(1), (1, 5), (0,), "at least 1"),
        (limits.Range(0, 8), (0, 8), (-1, 9), "at least 0 and at most 8"),
        (limits.Range(0, open_low=True), (1e-9, 3.0), (0.0, -1.0), "above 0"),
        (limits.DECAY, (0.0, 0.999), (1.0, -0.1), "at least 0 and below 1"),
    ],
)
def test_a_range_holds_what_its_text_says(allowed, inside, outside, text):
    assert all(value in allowed for value in inside) and not any(value in allowed for value in outside)
    assert str(allowed) == text


@pytest.mark.parametrize("value", [10**400, 1e300, 2**63, float("nan"), float("inf"), -(10**400), -1e300])
def test_no_number_is_too_large_to_be_refused_by_name(value):
    """Catches a MemoryError or a traceback of JAX, an hour into the queue, in place of the field's name."""
    for field, allowed in limits.RANGES.items():
        assert value not in allowed and allowed.high < math.inf, field
    for field in ("train.steps", "train.learning_rate", "model.depth", "model.mlp_ratio"):
        with pytest.raises(ConfigError, match=re.escape(f"config.{field}")):
            apply_overrides(Config(), {field: value})


def test_what_a_researcher_may_mean_is_allowed():
    """A network of 100 billion parameters, a batch of a million, a hundred million steps."""
    large = {"model.depth": 120, "model.hidden": 8192, "train.batch_size": 2**20, "train.steps": 10**8}
    assert apply_overrides(Config(), large).train.steps == 10**8
