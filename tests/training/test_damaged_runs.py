"""Files of a run's folder that are damaged, or of another type: refused by name wherever they are read."""

import json
import os
import shutil
from pathlib import Path

import pytest

from helpers.training_tiny import tiny_config
from rfjax import cli
from rfjax.config import to_dict
from rfjax.errors import RfjaxError
from rfjax.training import checkpoint_facts, lineage, monitor, run_folder
from rfjax.training.metrics import MetricsWriter, truncate
from rfjax.training.run import describe, make_run, open_run

DAMAGED = ["", "3", "null", "true", '"a"', "[]", "[1]", "{", '{"a": NaN}', "[" * 2000, "\ufffe{}", '{"run"']


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of a run without a checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = make_run(tiny_config(), folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(run.config)))
    (folder / "run.json").write_text(json.dumps(describe(run, None) | {"step": 0}))
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "run")


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_damaged_file_of_a_run_is_refused_by_name(folder, name, text):
    """Catches a traceback under `train`, `eval`, `sample` and `export`."""
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(
        RfjaxError, match=f"run/{name} (cannot be read|holds no config).*(restore it|another --workdir)"
    ):
        open_run(folder)


WRONG = {
    "run": [None, 3, []],
    "flops_per_image": ["x", None, [1]],
    "corpus_fingerprint": [None, 3],
    "parent": [3, "y", {"path": "a"}, [1]],
    "starts": [None, {}, [3]],
    "buckets": [3, [3], [{"flops_per_image": "x"}]],
    "made_with": [3, "x"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_key_of_run_json_of_another_type_is_refused_by_name(folder, key, value):
    """Catches a TypeError of training, hours after the first start."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(RfjaxError, match=rf"run/run.json cannot be read: ({key}|buckets\[0\]|starts\[0\]|parent)"):
        run_folder.read_run(folder)


@pytest.mark.parametrize("key", ["run", "flops_per_image", "corpus_fingerprint", "parent", "starts"])
def test_a_key_that_run_json_lacks_is_named(folder, key):
    path = folder / "run.json"
    facts = json.loads(path.read_text())
    del facts[key]
    path.write_text(json.dumps(facts))
    with pytest.raises(RfjaxError, match=f"run/run.json cannot be read: it has no {key}"):
        run_folder.read_run(folder)


@pytest.mark.parametrize("text", [*DAMAGED, "{}", '{"state": "done"}', '{"state": "x", "step": 1, "message": ""}'])
def test_a_damaged_status_is_refused_by_name(folder, text):
    (folder / "status.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RfjaxError, match="run/status.json cannot be read"):
        run_folder.read_status(folder)


def test_values_of_config_json_are_refused_with_the_file(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for section, value in (("model", 3), ("train", {"steps": "x"}), ("data", []), ("new", {})):
        path.write_text(json.dumps(values | {section: value}))
        with pytest.raises(RfjaxError, match=f"run/config.json holds no config of a run: .*{section}"):
            open_run(folder)


def test_the_verbs_refuse_a_damaged_run_in_one_line(folder, capsys):
    (folder / "config.json").write_text("[]")
    for verb in ("eval RUN", "sample RUN --prompt=a", "export RUN --format=diffusers --out=OUT"):
        words = verb.replace("RUN", str(folder)).replace("OUT", str(folder.parent / "x"))
        assert cli.main(words.split()) == 1, words
        said = capsys.readouterr().err
        assert "run/config.json" in said and said.count("\n") == 1 and "Traceback" not in said


def test_lines_that_are_no_rows_are_dropped_from_the_curve(tmp_path):
    """Catches a TypeError where a resumed run cuts its curve: rows that are numbers, lists, null or bytes."""
    path = tmp_path / "metrics.jsonl"
    rows = [b'{"step": 1}', b"3", b"null", b"[]", b'{"step": "2"}', b"\xff\xfe", b'{"step": 2}', b'{"step": 3}', b"{"]
    path.write_bytes(b"\n".join(rows))
    truncate(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_parent_that_is_damaged_is_refused_by_name(folder, monkeypatch):
    (folder / "run.json").write_text("[]")
    monkeypatch.setattr(lineage, "parse_origin", lambda text, option="": (folder, 3))
    monkeypatch.setattr(lineage.checkpoint, "read_facts", lambda *_: {"images": 1, "flops": 1.0})
    with pytest.raises(RfjaxError, match="run/run.json cannot be read"):
        lineage.read_parent(str(folder))


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link to nothing"])
def test_a_curve_that_is_no_file_is_refused_by_name(tmp_path, what):
    """Catches a traceback, and a pipe that training waits for for ever."""
    path = tmp_path / "metrics.jsonl"
    {"a folder": Path.mkdir, "a pipe": os.mkfifo, "a link to nothing": lambda path: path.symlink_to("x")}[what](path)
    with pytest.raises(RfjaxError, match=f"cannot write .*metrics.jsonl: it is {what}; remove it"):
        MetricsWriter(tmp_path, 0)


@pytest.mark.parametrize("text", ["{}", None])
def test_a_config_that_lost_its_keys_is_not_another_network(folder, text):
    """Catches a config.json of {}, which means the defaults: a traceback of JAX, or numbers of another schedule."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values["train"]["learning_rate"]
    path.write_text(text or json.dumps(values))
    with pytest.raises(RfjaxError, match="and run.json belong to different runs: .* by the one and .* by the o"):
        open_run(folder)


FACTS = {"images": 8, "flops": 1.0, "train_seconds": 0.5, "checksums": {"params/a": 3}}
WRONG_FACTS = {
    "images": ["8", None, [8], 1.5, True],
    "flops": ["x", None, {}],
    "train_seconds": [[], "1"],
    "checksums": [[], {"params/a": "x"}, 3],
    "window": [3, {"steps": 1}, {"steps": "x"}],
    "skipped_in_row": ["0", None],
    "weights_alone": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_FACTS.items() for value in values])
def test_facts_of_a_checkpoint_of_another_type_are_refused_by_name(tmp_path, key, value):
    """Catches a TypeError of a resumed run, of a checkpoint that has no seal."""
    checkpoint_facts.check(FACTS, tmp_path, 3, tmp_path / "checkpoints" / "3")
    with pytest.raises(RfjaxError, match=rf"checkpoints/3 is damaged: facts.{key}"):
        checkpoint_facts.check(FACTS | {key: value}, tmp_path, 3, tmp_path / "checkpoints" / "3")


@pytest.mark.parametrize("facts", [3, [], "a", None, {}, FACTS | {"checksums": None}])
def test_facts_that_are_no_facts_are_refused(tmp_path, facts):
    with pytest.raises(RfjaxError, match="checkpoints/3 is damaged: facts"):
        checkpoint_facts.check(facts, tmp_path, 3, tmp_path / "checkpoints" / "3")


@pytest.mark.parametrize("text", [*DAMAGED, "pipe"])
def test_a_checkpoints_owner_is_not_asked_of_a_damaged_record(tmp_path, text):
    """Catches a checkpoint that is called damaged by a RecursionError, and a pipe that is waited for."""
    path = tmp_path / "run.json"
    os.mkfifo(path) if text == "pipe" else path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert checkpoint_facts.owner_of(tmp_path) is None


def test_an_imported_checkpoint_is_a_good_one(tmp_path, monkeypatch):
    """Catches a KeyError in place of the word that an imported run diverged: its checkpoint counts no skipped steps."""
    monkeypatch.setattr(monitor.checkpoint, "steps_saved", lambda _: [0])
    monkeypatch.setattr(monitor.checkpoint, "read_facts", lambda *_: FACTS | {"weights_alone": True})
    assert monitor.last_good(tmp_path) == 0
