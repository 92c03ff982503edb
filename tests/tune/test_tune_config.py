"""The config of a tuning: files, overrides, refusals, and its names against the tables."""

import pytest

from rfjax.config import Config, SamplerConfig, apply_overrides
from rfjax.errors import ConfigError
from rfjax.tune import config
from rfjax.tune.methods import METHODS


def test_the_config_knows_the_methods_of_the_table():
    assert set(config.CHOICES["method"]) == set(METHODS)


def test_a_file_and_overrides_give_a_config(tmp_path):
    (tmp_path / "tuning.py").write_text("def get_config():\n    return {'steps': 7, 'lora': {'rank': 3}}\n")
    tune = config.load(tmp_path / "tuning.py", {"lora.alpha": "12", "dpo.noise": "own", "watch.unguided": "false"})
    assert (tune.steps, tune.lora.rank, tune.alpha, tune.scale) == (7, 3, 12.0, 4.0)
    assert tune.dpo.noise == "own" and not tune.watch.unguided
    assert config.from_dict(config.to_dict(tune)) == tune
    assert config.differences(tune, config.load(tmp_path / "tuning.py", {})) == [
        "dpo.noise",
        "lora.alpha",
        "watch.unguided",
    ]


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"step": "3"}, "unknown config key config.step of a tuning; did you mean config.steps?"),
        ({"lora.rnk": "3"}, "did you mean config.lora.rank?"),
        ({"lora": "3"}, "config.lora is a section; name one of its fields: rank, alpha"),
        ({"method": "dppo"}, "config.method is 'dppo'; it must be one of dpo, nft, grpo; did you mean dpo?"),
        ({"lora.rank": "0"}, "config.lora.rank is 0; it must be at least 1"),
        ({"steps": "many"}, "config.steps is 'many'; it must be an integer"),
        ({"reward": "beauty"}, "config.reward is 'beauty'; it must be one of geneval, geneval_graded, cleanness"),
        ({"reward": "cleanness"}, "both cleanness; the held-out reward must be another"),
        ({"accumulate": "3"}, "config.batch_size 32 is not divisible by config.accumulate=3"),
    ],
)
def test_a_wrong_key_or_value_is_named(overrides, said):
    with pytest.raises(ConfigError) as error:
        config.load(None, overrides)
    assert said in str(error.value)


def test_the_runs_own_sampler_is_taken_unless_another_is_asked_for():
    own = SamplerConfig(steps=20, guidance_scale=4.0)
    assert config.TuneConfig().sampler(own) == own
    other = config.load(None, {"rollout.sampler_steps": "5", "rollout.guidance_scale": "1"}).sampler(own)
    assert (other.steps, other.guidance_scale) == (5, 1.0)


def test_a_tuned_run_keeps_the_network_and_the_evaluations_of_its_own():
    base = Config()
    tuned = config.run_config(base, config.load(None, {"steps": "9", "batch_size": "6"}))
    assert (tuned.model, tuned.data, tuned.seed) == (base.model, base.data, base.seed)
    assert (tuned.train.steps, tuned.train.batch_size, tuned.train.condition_dropout) == (9, 6, 0.0)
    assert tuned.evaluation.sampler == base.evaluation.sampler


def test_a_tuned_run_keeps_no_power_averages():
    """Catches a base run's averages asked of the state of a tuning, which has none."""
    base = apply_overrides(Config(), {"train.power_averages": (0.05, 0.1), "train.average_snapshots": 8})
    assert config.run_config(base, config.load(None, {})).train.power_averages == ()
