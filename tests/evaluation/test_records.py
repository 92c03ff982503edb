"""Evaluation records: one file per key, whole or absent, and damage named."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.geneval.rules import ImageResult, score
from rfjax.evaluation.paired_loss import ValidationLoss
from rfjax.evaluation.records import (
    Measured,
    check_may_record,
    check_still_run,
    geneval_record,
    lag_note,
    make_record,
    read_records,
    record_key,
    record_name,
    validation_record,
    write_record,
)


def key(**changes):
    return record_key(**{"run": "d4-s0", "step": 200, "evaluation": "validation", "corpus": "shapes", **changes})


def record(value=0.1, **changes):
    values = [Measured(metric="loss", value=value, n=3)]
    return make_record(key(**changes), values, images=12_800, flops=1.5e12, seconds=2.0, train_seconds=60.0)


def test_records_are_read_back_in_the_order_of_their_keys(tmp_path):
    assert read_records(tmp_path) == [] == read_records(tmp_path / "absent")
    later, earlier = record(step=1000), record(step=200)
    for one in (later, earlier):
        path = write_record(tmp_path, one)
        assert path == tmp_path / "evaluations" / record_name(one["key"]) and path.is_file()
    assert read_records(tmp_path) == [earlier, later]


def test_a_repeated_key_replaces_the_old_record(tmp_path):
    write_record(tmp_path, record(0.1))
    write_record(tmp_path, record(0.2))
    assert [one["values"][0]["value"] for one in read_records(tmp_path)] == [0.2]
    assert len(os.listdir(tmp_path / "evaluations")) == 1


def test_every_field_of_the_key_tells_records_apart(tmp_path):
    changes = {"run": "b", "step": 201, "weights": "raw", "evaluation": "geneval", "corpus": "digits"}
    changes |= {"sampler": "euler-20-cfg4-shift1", "grid": "paper-8", "seed": 1}
    assert set(changes) == set(key())
    names = {record_name(key())} | {record_name(key(**{field: value})) for field, value in changes.items()}
    assert len(names) == 9
    assert record_name(dict(reversed(key().items()))) == record_name(key())  # the order of fields does not


def test_the_name_of_a_key_stays_what_it_is():
    """The SHA-1 of canonical JSON, by hand: another name would orphan what is on disk."""
    text = '{"corpus":"shapes","evaluation":"validation","grid":"-","run":"d4-s0",'
    text += '"sampler":"-","seed":0,"step":200,"weights":"-"}'
    assert record_name(key()) == hashlib.sha1(text.encode()).hexdigest() + ".json"


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    write_record(tmp_path, record(0.1))

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RfjaxError, match="cannot write .*No space left on device"):
            write_record(tmp_path, record(0.2))
    assert read_records(tmp_path) == [record(0.1)]
    assert len(os.listdir(tmp_path / "evaluations")) == 1


def test_a_reader_sees_the_old_record_or_the_new_one_whole(tmp_path):
    path = write_record(tmp_path, record(0.1))
    with open(path) as reader:
        write_record(tmp_path, record(0.2))
        assert json.load(reader) == record(0.1)


KILLED_SCRIPT = """
import json, os, signal, sys
from rfjax.evaluation.records import write_record
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # the text is written, nothing more
write_record(sys.argv[1], json.loads(sys.argv[2]))
"""


def test_a_write_that_is_killed_halfway_leaves_the_old_record(tmp_path):
    write_record(tmp_path, record(0.1))
    command = [sys.executable, "-c", KILLED_SCRIPT, str(tmp_path)]
    root = Path(__file__).parents[2]
    for new in (record(0.2), record(step=300)):
        assert subprocess.run([*command, json.dumps(new)], cwd=root).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "evaluations")) == 3  # what the kills left over is not read
    assert read_records(tmp_path) == [record(0.1)]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[:40], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "[]", "is list, not an object"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "has schema 2, not 1"),
        (lambda text: text.replace('"flops"', '"flop"'), "has the fields"),
        (lambda text: text.replace('"step": 200', '"step": "200"'), "key field step '200'; it must be int"),
        (lambda text: text.replace('"step": 200', '"step": 201'), "holds the record of another key, which belongs in"),
        (lambda text: text.replace('"n": 3', '"m": 3'), "has the value"),
        (lambda text: text.replace("0.1", '"low"'), "must be numbers or null"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = write_record(tmp_path, record())
    path.write_text(damage(path.read_text()))
    with pytest.raises(RfjaxError, match=rf"{path.name}.*{message}.*; remove the file"):
        read_records(tmp_path)


def test_bytes_that_are_no_text_are_damage(tmp_path):
    path = write_record(tmp_path, record())
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RfjaxError, match=f"{path.name} is damaged"):
        read_records(tmp_path)


def test_records_out_of_schema_are_not_written(tmp_path):
    for wrong, message in (
        ({**record(), "schema": 2}, "schema"),
        ({**record(), "more": 1}, "fields"),
        ({**record(), "key": {"run": "a"}}, "key"),
        ({**record(), "key": {**key(), "seed": True}}, "seed"),
        ({**record(), "values": record()["values"] * 2}, "twice"),
        ({**record(), "values": [record()["values"][0] | {"value": float("nan")}]}, "not plain JSON"),
        ({**record(), "extra": {"array": np.zeros(2)}}, "not plain JSON"),
    ):
        with pytest.raises(RfjaxError, match=message):
            write_record(tmp_path, wrong)
    assert not (tmp_path / "evaluations").exists()


def test_a_number_becomes_a_value_of_seven_fields():
    """In the order that files on disk have; what is not known, or not finite, is null."""
    within = Measured.within(metric="loss", item="t=1", value=2.0, stderr=0.5, n=3)
    assert json.dumps(within.to_json()) == (
        '{"metric": "loss", "item": "t=1", "value": 2.0, "stderr": 0.5, "low": 1.02, "high": 2.98, "n": 3}'
    )
    unknown = {"stderr": None, "low": None, "high": None, "n": 3}
    assert (
        Measured(metric="cmmd", value=2.0, n=3).to_json() == {"metric": "cmmd", "item": "mean", "value": 2.0} | unknown
    )
    for value, stderr in ((2.0, np.nan), (np.inf, np.nan), (np.nan, np.nan)):
        made = Measured.within(metric="cmmd", value=value, stderr=stderr, n=3).to_json()
        assert made == {"metric": "cmmd", "item": "mean", "value": 2.0 if value == 2.0 else None} | unknown


LOSS = ValidationLoss(
    grid="paper-4",
    seed=0,
    levels=(0.25, 0.5, 0.75, 1.0),
    averaged=(True, True, True, False),
    example_ids=np.arange(3, dtype=np.uint32),
    per_example=np.array([[1, 2, 3, 9], [2, 3, 4, 9], [3, 4, 5, 9]], np.float32),
)


def test_a_validation_loss_as_a_record(tmp_path):
    made = validation_record(key(grid="paper-4"), LOSS, images=5, flops=2.0, extra={"note": "x"})
    write_record(tmp_path, made)
    (read,) = read_records(tmp_path)
    assert read == made and read["images"] == 5 and read["flops"] == 2.0 and read["seconds"] is None
    values = {value["item"]: value for value in read["values"]}
    assert {value["metric"] for value in read["values"]} == {"loss"}
    assert list(values) == ["mean", "t=0.25", "t=0.5", "t=0.75", "t=1"]
    stderr = 1 / np.sqrt(3)
    assert values["mean"] == pytest.approx(
        {"metric": "loss", "item": "mean", "value": 3.0, "stderr": stderr}
        | {"low": 3 - 1.96 * stderr, "high": 3 + 1.96 * stderr, "n": 3}
    )
    assert [values[item]["value"] for item in list(values)[1:]] == [2.0, 3.0, 4.0, 9.0]
    assert read["extra"]["example_losses"] == [2.0, 3.0, 4.0] and read["extra"]["note"] == "x"
    assert read["extra"]["averaged"] == [True, True, True, False]


def test_a_loss_that_is_not_finite_is_recorded_as_null(tmp_path):
    spoilt = ValidationLoss(**{**LOSS.__dict__, "per_example": np.full((3, 4), np.nan, np.float32)})
    write_record(tmp_path, validation_record(key(), spoilt))
    assert read_records(tmp_path)[0]["values"][0]["value"] is None


def test_geneval_scores_as_a_record(tmp_path):
    def images(tag, outcomes):
        return [ImageResult({"tag": tag, "prompt": str(i)}, bool(o), "", {}) for i, o in enumerate(outcomes)]

    seen = score(images("single_object", [1, 1, 0, 1]) + images("colors", [1, 0]))
    held_out = score(images("colors", [0]))
    made = geneval_record(key(evaluation="geneval"), {"geneval": seen, "geneval_held_out": held_out}, seconds=3.0)
    write_record(tmp_path, made)
    (read,) = read_records(tmp_path)
    values = {(value["metric"], value["item"]): value for value in read["values"]}
    assert list(values) == [("geneval", item) for item in ("overall", "single_object", "colors")] + [
        ("geneval_held_out", "overall"),
        ("geneval_held_out", "colors"),
    ]
    overall = values["geneval", "overall"]
    assert overall["value"] == 0.625 and overall["n"] == 6 and overall["low"] < 0.625 < overall["high"]
    assert values["geneval_held_out", "colors"]["stderr"] is None  # one prompt has none
    assert "counting" in read["extra"]["geneval"]["missing_tasks"]
    assert read["extra"]["geneval"]["prompts"] == {"overall": 6, "single_object": 4, "colors": 2}
    assert json.dumps(read, allow_nan=False)


def test_an_average_that_lags_is_told():
    """Catches a law whose losses say more of the average than of the networks; and another metric, written before the
    loss, that is taken for it."""

    def record(weights, value, step=20):
        key = dict.fromkeys(("corpus", "grid", "seed"), "x") | {"evaluation": "validation", "step": step}
        before = {"metric": "new", "item": "mean", "value": 2.0 if weights == "ema" else 0.4}
        return {
            "key": key | {"weights": weights},
            "values": [before, {"metric": "loss", "item": "mean", "value": value}],
        }

    assert "a loss of 2 where the raw weights have 0.4" in lag_note([record("ema", 2.0), record("raw", 0.4)], 20)
    assert lag_note([record("ema", 0.41), record("raw", 0.4)], 20) is None
    assert lag_note([record("ema", 2.0), record("raw", 0.4, step=10)], 20) is None
    assert lag_note([record("ema", None), record("raw", 0.4)], 20) is None


def test_a_folder_that_went_while_it_was_measured_is_not_made_anew(tmp_path):
    """Catches a folder with records and without a run, into which the run cannot be moved back."""
    with pytest.raises(RfjaxError, match="run is no longer a run's folder .*move it back"):
        check_still_run(tmp_path / "run")
    (tmp_path / "run.json").write_text("{}")
    check_still_run(tmp_path)


def test_a_folder_that_takes_no_records_is_refused_before_the_work(tmp_path, monkeypatch):
    check_may_record(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="evaluation's record .*read-only for you"):
        check_may_record(tmp_path)
