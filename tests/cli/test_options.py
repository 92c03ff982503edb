"""What every option of every verb refuses: URLs, empty values, words that no file can have as its name."""

import argparse
import functools
import re

import pytest

from helpers.random_runs import make_config
from rfjax import config as configs
from rfjax import config_files
from rfjax.cli import VERBS, main
from rfjax.cli.arguments import MAY_BE_EMPTY, parsers
from rfjax.errors import ConfigError
from rfjax.inputs.paths import local_path, local_text, mounted_text
from rfjax.prepare.options import source_text
from rfjax.results.foreign_table import read_table
from rfjax.results.results_folder import read
from rfjax.training.run import make_run, open_run

READERS = (local_path, local_text, mounted_text, source_text)
# The options whose value is text and no path. A new option must be given one of READERS, or be named here.
WORDS = {
    "--accelerator --account --average --buckets --caption-column --coordinator --corpus --device --encoders --filter",
    "--fps --gcloud --image --label-column --latent-size --metric --model-mean --model-output --model-std",
    "--models-variant --namespace --negative --on --partition --point --project --prompt --questions --rename",
    "--runtime-version --sampler --sampling-steps --sbatch --service-account --setup --synthetic-column --target",
    "--task --template --text-setting --time --volume --weights --zone",
}


def actions():
    """(verb, option) of every option that takes a value."""
    for verb in VERBS:
        parser = parsers(verb)[1][verb]
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction) and action.nargs != 0:
                yield verb, action


def name_of(action):
    return action.option_strings[0] if action.option_strings else action.metavar


def reader_of(action):
    return action.type.func if isinstance(action.type, functools.partial) else action.type


def test_every_path_is_read_by_one_way():
    """Catches a new option that takes a path as it stands: a URL would become a folder, `~` a folder of that name."""
    words, seen = {word for line in WORDS for word in line.split()}, set()
    for verb, action in actions():
        name, read = name_of(action), reader_of(action)
        if read in READERS:
            named = action.type.keywords["option"] if isinstance(action.type, functools.partial) else "SOURCE"
            assert named == name, f"rfjax {verb} {name} is called {named} in messages"
        elif read is None and action.choices is None and not isinstance(action, argparse.BooleanOptionalAction):
            seen.add(name)
    assert seen == words


@pytest.mark.parametrize("value", ["gs://bucket/x", "~nobody-of-that-name/x", "x" * 300])
def test_every_path_refuses_what_is_none(value, capsys):
    """Every option of every verb, the rest of the command line left out: values are read before it is missed."""
    for verb, action in actions():
        if reader_of(action) in READERS and not (reader_of(action) is mounted_text and value.startswith("~")):
            positional = [other.dest for of, other in actions() if of == verb and not other.option_strings]
            before = ["."] * positional.index(action.dest) if action.dest in positional else []
            words = [f"{name_of(action)}={value}"] if action.option_strings else [*before, value]
            assert main([verb, *words]) == 2, (verb, words)
            assert capsys.readouterr().err.startswith(f"rfjax: {name_of(action)} is {value[:20]!r}"[:30]), (verb, words)


def test_every_option_refuses_an_empty_value():
    """Catches an unset shell variable that is taken for an option left out."""
    for verb, action in actions():
        if action.choices is None and action.type not in (int, float) and action.dest not in MAY_BE_EMPTY:
            parser = parsers(verb)[1][verb]
            for value in ("", "  "):
                with pytest.raises(ConfigError, match=f"{name_of(action)} is empty"):
                    if action.type is not None:
                        action.type(value)
                    several = [value] if isinstance(action, argparse._AppendAction) else value
                    parser.check_values(argparse.Namespace(**{action.dest: several}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "--config=shapes", "--point=", "--dry-run"], "--point is empty"),
        (["train", "--config=shapes", "--workdir=x", "--init="], "--init is empty"),
        (["train", "--config=shapes", "--workdir="], "--workdir is empty"),
        (["train", "--config=shapes", "--workdir=x", "--config.train.steps="], "--config.train.steps is empty"),
        (["train", "--config=shapes", "--workdir=x", "--config.name= "], "--config.name is empty"),
        (["train", "--config=shapes", "--workdir=x", "--config.evaluation.weights=,"], "'*,'*, which names nothing"),
        (["prepare", "tfds:gs://bucket/x", "--out=x", "--models=x"], "SOURCE is 'gs://bucket/x', a URL"),
        (["prepare", "tfds:", "--out=x", "--models=x"], "SOURCE is empty"),
        (["sample", "x", "--prompt=a", "--encoders=clip_l,,t5"], "--encoders is .* an empty name"),
        (["train", "--config=\udce9.py", "--workdir=x"], r"'--config=\\udce9.py' is no UTF-8; rename"),
        (["train", "--config=a\0.py", "--workdir=x"], "zero byte"),
        (
            ["train", "--config=shapes", "--workdir=x", "--config.data.prepared.path=gs://b"],
            "config.data.prepared.path is 'gs://b', a URL",
        ),
        (["launch", "--config=shapes", "--on=slurm", "--storage=gs://b"], "--storage is 'gs://b', a URL"),
    ],
)
def test_refused_with_the_options_name(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_library_call_refuses_a_url(tmp_path, monkeypatch):
    """`rfjax.make_run(config, "gs://x")` and the others, and a config that names one."""
    monkeypatch.chdir(tmp_path)
    for call in (lambda url: make_run(make_config(), url), open_run, read_table, read, config_files.load):
        with pytest.raises(ConfigError, match="is 'gs://b/x.*a URL"):
            call("gs://b/x.py")
    with pytest.raises(ConfigError, match="config.data.prepared.models is 's3://b', a URL"):
        configs.from_dict({"data": {"corpus": "prepared", "prepared": {"path": "x", "models": "s3://b"}}})
    monkeypatch.setenv("HOME", str(tmp_path))
    read_back = configs.from_dict({"data": {"corpus": "prepared", "prepared": {"path": "~/x"}}})
    assert read_back.data.prepared.path == str(tmp_path / "x")
