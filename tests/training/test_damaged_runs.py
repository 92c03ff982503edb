"""Files of a run's folder that are damaged, or of another type: refused by name wherever they are read."""

import json
import shutil

import pytest

from helpers.training_tiny import tiny_config
from rfjax import cli
from rfjax.config import to_dict
from rfjax.errors import RfjaxError
from rfjax.training import lineage, run_folder
from rfjax.training.metrics import truncate
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
    monkeypatch.setattr(lineage, "parse_init", lambda text: (folder, 3))
    monkeypatch.setattr(lineage.checkpoint, "read_facts", lambda *_: {"images": 1, "flops": 1.0})
    with pytest.raises(RfjaxError, match="run/run.json cannot be read"):
        lineage.read_parent(str(folder))
