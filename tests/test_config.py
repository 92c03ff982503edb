"""Configs: every field checked by name before anything runs."""

import dataclasses
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rfjax import config as configs
from rfjax import config_files, shipped
from rfjax.config import Config, from_dict, to_dict
from rfjax.errors import ConfigError
from rfjax.study.study import load_study
from rfjax.tune import config as tune_config

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.dpeth": "3"}, r"unknown config key config.model.dpeth; did you mean config.model.depth\?"),
        ({"depth": "3"}, r"did you mean config.model.depth\?"),
        ({"train.learning_rat": "1"}, r"did you mean config.train.learning_rate\?"),
        ({"model": "3"}, "config.model is a section"),
        ({"train.steps": "many"}, "config.train.steps is 'many'; it must be an integer"),
        ({"train.steps": "1.5"}, "config.train.steps is 1.5; it must be an integer"),
        ({"train.steps": "True"}, "config.train.steps is True; it must be an integer"),
        ({"train.learning_rate": "nan"}, "config.train.learning_rate is 'nan'; it must be a finite number"),
        ({"train.learning_rate": "1e999"}, "it must be a finite number"),
        ({"model.qk_norm": "1"}, "config.model.qk_norm is 1; it must be true or false"),
        ({"train.steps": "0"}, "config.train.steps is 0; it must be at least 1"),
        ({"data.corpus": "shaps"}, r"config.data.corpus is 'shaps'.*did you mean shapes\?"),
        (
            {"model.head_size": "48", "model.depth": "2"},
            "the hidden size .* 128 is not divisible by config.model.head_size=48",
        ),
        ({"data.image_size": "15"}, "config.data.image_size 15 is not divisible by config.model.patch_size=2"),
        (
            {"train.batch_size": "30", "train.accumulate": "4"},
            "batch_size 30 is not divisible by config.train.accumulate=4",
        ),
        (
            {"model.dual_attention_blocks": "15"},
            "blocks is 15 and config.model.depth is 15; config.model.dual_attention_blocks must be",
        ),
        (
            {"model.weight_sets": "3", "data.context_tokens": "16"},
            "tokens is 77 and config.data.context_tokens is 16; of 3",
        ),
        ({"evaluation.weights": "ema,best"}, "must list ema, raw or both"),
        ({"model.hidden": "0"}, "the hidden size .* is 0; it must be at least 1"),
        ({"model.time_embedding_size": "33"}, "time_embedding_size 33 is not divisible by 2"),
        ({"model.mlp_ratio": "0.0001"}, "mlp_ratio is 0.0001 .* their product must be at least 1"),
        ({"train.b1": "1.0"}, r"config.train.b1 is 1.0; it must be at least 0 and below 1"),
        ({"train.eps": "0"}, "config.train.eps is 0.0; it must be above 0"),
        ({"train.decay_fraction": "-1"}, "config.train.decay_fraction is -1.0"),
        ({"train.weight_decay": "-5"}, "config.train.weight_decay is -5.0; it must be at least 0"),
        ({"seed": "-1"}, "config.seed is -1; it must be at least 0"),
        (
            {"evaluation.geneval.seed": "5000000000"},
            "geneval.seed is 5000000000; it must be .* below 4294967296",
        ),
        (
            {"evaluation.weights": "raw"},
            r"geneval.weights is \('ema',\) and config.evaluation.weights is \('raw',\)",
        ),
        ({"evaluation.ranking.samplers": "50-5"}, "samplers has '50-5'; a sampler is steps@guidance scale"),
        ({"evaluation.ranking.samplers": "5@5,5@5.0"}, "it must list at least one sampler, and each only once"),
        ({"evaluation.ranking.samplers": ()}, "it must list at least one sampler"),
        (
            {"evaluation.geneval.few_prompts_per_task": "40"},
            "few_prompts_per_task is 40 and .*prompts_per_task is 40; few_prompts_per_task must be below",
        ),
        ({"evaluation.ranking.prompts_per_task": "1"}, "prompts_per_task is 1; intervals are made by resampling"),
        ({"timestep_shift": "0"}, "config.timestep_shift is 0.0; it must be above 0"),
    ],
)
def test_bad_values_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configs.apply_overrides(Config(), overrides)


def test_unknown_keys_in_a_file_are_refused_too():
    with pytest.raises(ConfigError, match=r"config.train.lr; did you mean|unknown config key config.train.lr"):
        from_dict(ConfigDict({"train": {"lr": 1e-3}}))
    with pytest.raises(ConfigError, match="config.train is 3; it must be a section"):
        from_dict({"train": 3})


def test_overrides_take_the_fields_type():
    made = configs.apply_overrides(
        Config(),
        {
            "train.learning_rate": "3",
            "model.hidden": "96",
            "model.head_size": "32",
            "name": "7",
            "evaluation.weights": "('raw',)",
            "evaluation.geneval.weights": "raw",
        },
    )
    assert made.train.learning_rate == 3.0 and isinstance(made.train.learning_rate, float)
    assert made.model.hidden == 96 and made.name == "7" and made.evaluation.weights == ("raw",)
    assert configs.apply_overrides(made, {"model.hidden": "none"}).model.hidden is None


def test_round_trip_and_differences():
    one = configs.apply_overrides(Config(), {"model.depth": 18, "evaluation.weights": ("ema",)})
    assert from_dict(to_dict(one)) == one
    assert configs.differences(one, Config()) == ["evaluation.weights", "model.depth"]


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


def test_width_and_heads_follow_the_depth():
    model = configs.apply_overrides(Config(), {"model.depth": 24}).model
    assert (model.width, model.heads) == (1536, 24)


def test_what_the_schedule_does_not_read_is_refused_where_it_was_given(tmp_path):
    """Catches a decay that a user tunes and the cosine schedule ignores; a trunk's inherited decay is no mistake."""
    given = {"train.schedule": "cosine", "train.decay_fraction": "0.3"}
    with pytest.raises(ConfigError, match="decay_fraction is given, but config.train.schedule=cosine does not read it"):
        configs.apply_overrides(Config(), given)
    with pytest.raises(ConfigError, match="set config.train.schedule=cosine or wsd"):
        configs.apply_overrides(Config(), {"train.final_learning_rate_fraction": 0.1})
    wsd = configs.apply_overrides(Config(), {"train.schedule": "wsd", "train.decay_fraction": 0.3})
    constant = configs.apply_overrides(wsd, {"train.schedule": "constant"})
    assert from_dict(to_dict(constant)) == constant and constant.train.decay_fraction == 0.3
    file = tmp_path / "a.py"
    file.write_text("def get_config():\n    return {'train': {'schedule': 'cosine', 'decay_shape': 'linear'}}\n")
    for read in (config_files.load, load_study):
        with pytest.raises(ConfigError, match="decay_shape is given"):
            read(file)
        assert read(file, {"train.schedule": "constant"})
    file.write_text(file.read_text() + "def points():\n    return {'a': {'train.schedule': 'wsd'}, 'b': {}}\n")
    assert len(load_study(file).points) == 2  # one of them reads it


def test_missing_and_broken_files(tmp_path):
    (tmp_path / "good.py").write_text("def get_config():\n    return {'model': {'depth': 3}}\n")
    assert config_files.load(tmp_path / "good.py", {"seed": "4"}).seed == 4
    with pytest.raises(ConfigError, match=r"no config file at .*goood.py; did you mean .*good.py\?"):
        config_files.load(tmp_path / "goood.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no get_config"):
        config_files.load(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def get_config(:\n", "a.py failed in line 1: SyntaxError: invalid syntax"),
        ("x = 1\n".encode("utf-16"), "SyntaxError.*saved as UTF-8"),
        (b"import sys\nsys.exit(0)\n", "a.py failed in line 2: SystemExit: it ends the program"),
        (b"def get_config():\n    return {}['x\\ny']\n", r"get_config\(\) of .*a.py failed in line 2: KeyError"),
        (b"def get_config():\n    return get_config()\n", "failed in line 2: RecursionError"),
        (b"def get_config():\n    return 3\n", "returned 3; it must return a ConfigDict"),
        (b"def get_config():\n    return {'name': ' '}\n", "config.name is .*must not be empty"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_told_with_its_line(tmp_path, content, message):
    """Catches an exit of a config that ends the command with its status, and a traceback of ours."""
    (tmp_path / "a.py").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        config_files.load(tmp_path / "a.py")
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]  # no __pycache__


def test_what_is_no_file_is_told_as_such(tmp_path):
    """Catches a pipe that is waited for, and a path without .py, which Python's own importer gives up on."""
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "plain").write_text("def get_config():\n    return {'seed': 5}\n")
    for name, message in (("folder.py", "it is a folder"), ("pipe.py", "it is a pipe")):
        with pytest.raises(ConfigError, match=message):
            config_files.load(tmp_path / name)
    with pytest.raises(ConfigError, match="run.json is JSON; give the Python file"):
        config_files.load_file(tmp_path / "run.json")
    assert config_files.load(tmp_path / "plain").seed == 5


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_in_the_repository_is_valid(path):
    if path.stem in shipped.TUNINGS:
        assert tune_config.load(path, {}).steps
    else:
        assert load_study(path).points
