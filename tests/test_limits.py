"""The names of choices and the tables that implement them; the fields that the tables of limits name."""

import math
import re
from operator import attrgetter

import pytest

from rfjax import config_rules, limits, option_limits
from rfjax.cli import main
from rfjax.cli.arguments import parsers
from rfjax.cli.verbs import VERBS
from rfjax.config import Config, apply_overrides
from rfjax.data.corpus import CORPORA
from rfjax.errors import ConfigError
from rfjax.evaluation.paired_loss import GRIDS
from rfjax.evaluation.step_sweep import parse_steps
from rfjax.flow.samplers import EVALUATIONS_PER_STEP, METHODS, SIGMAS
from rfjax.models.attention import IMPLEMENTATIONS
from rfjax.models.flops import RECOMPUTED
from rfjax.models.parametrization import PARAMETRIZATIONS
from rfjax.models.stack import REMAT_POLICIES
from rfjax.plan.estimate import KEPT
from rfjax.trackers.table import TRACKERS
from rfjax.training.optimizer import DECAYS, OPTIMIZERS, SCHEDULES


@pytest.mark.parametrize(
    "field, table",
    [
        ("data.corpus", CORPORA),
        ("model.parametrization", PARAMETRIZATIONS),
        ("train.optimizer", OPTIMIZERS),
        ("train.decay_shape", DECAYS),
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


def test_trackers_that_a_config_may_list_are_those_that_there_are():
    """Catches a row that no config can choose, and a choice that ends in a KeyError."""
    assert set(limits.TRACKERS) == set(TRACKERS)


def test_limits_name_fields_that_there_are():
    """Catches a renamed field whose rule would end in an AttributeError, and a default outside its own limits."""
    config = Config()
    networks = limits.BACKBONES.values()
    fields = {*limits.CHOICES, *limits.RANGES, *(field for row in config_rules.DIVISORS for field in row[:1])}
    fields |= {
        field for rules in (config_rules.RULES, *(n.rules for n in networks)) for row in rules for field in row[0]
    }
    fields |= {f"model.{field}" for network in networks for field in network.own_fields}
    for field in fields:
        attrgetter(field)(config)
    config_rules.check(config)


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


def numeric_options():
    for verb in VERBS:
        for action in parsers(verb)[1][verb]._actions:
            if action.type in (int, float):
                yield verb, action


def test_every_numeric_option_has_an_end():
    """Catches a new option without one: --samples=1e8 ended in a MemoryError, --resamples=1e9 never."""
    used = set()
    for verb, action in numeric_options():
        names = {f"{verb}.{action.dest}", action.dest} & set(option_limits.OPTION_ENDS)
        assert len(names) == 1, f"{verb} {action.option_strings[0]}"
        used |= names
        for default in action.default if isinstance(action.default, list) else [action.default]:
            assert default is None or default <= option_limits.OPTION_ENDS[min(names)]
    assert used == set(option_limits.OPTION_ENDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample RUN --samples=100000000", "--samples is 100000000; it must be at most 100,000"),
        ("fit TABLE --resamples=1000000000", "--resamples is 1000000000; it must be at most 100,000"),
        ("fit TABLE --budget=1e22 --budget=nan", "--budget is nan"),
        ("prepare SOURCE --out=o --models=m --threads=1000000000", "--threads is 1000000000"),
        ("train --config=shapes --workdir=w --processes=" + "9" * 100, "--processes is a number of 100 digits"),
        ("eval RUN --step=99999999999", "--step is 99999999999"),
    ],
)
def test_an_option_beyond_its_end_is_refused_before_any_work(words, said, capsys):
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_counts_of_sampling_steps_have_the_samplers_end():
    with pytest.raises(ConfigError, match="--sampling-steps has 1000000000; a count must be at least 1 and at most"):
        parse_steps("1,1000000000")
    with pytest.raises(ConfigError, match="samplers has"):
        config_rules.sampler_setting("1000000000@5")


def test_what_a_researcher_may_mean_is_allowed():
    """A network of 100 billion parameters, a batch of a million, a hundred million steps."""
    large = {"model.depth": 120, "model.hidden": 8192, "train.batch_size": 2**20, "train.steps": 10**8}
    assert apply_overrides(Config(), large).train.steps == 10**8
