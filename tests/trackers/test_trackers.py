"""What trackers are sent, and when: behind the last checkpoint, at least once, never two values for one step."""

import ast
import io
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import rfjax
from helpers import fake_tracker, tracked
from helpers.training_tiny import run_in, tiny_config, tiny_train
from rfjax.config import apply_overrides
from rfjax.errors import ConfigError, Diverged, RfjaxError
from rfjax.evaluation.records import Measured, make_record, record_key, write_record
from rfjax.trackers import cursor, event_files, feeding, items, table

FAKE = {"train.trackers": ("wandb",)}
FAKE_ROW = table.Row(module="helpers.fake_tracker", package="json", extra="trackers")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 30 steps with rows at every fourth and the last, and two checkpoints, 24 and 30; never tracked."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    tiny_train(workdir, FAKE)
    return workdir


@pytest.fixture
def fake(monkeypatch):
    fake_tracker.reset()
    monkeypatch.setitem(table.TRACKERS, "wandb", FAKE_ROW)
    monkeypatch.setattr(feeding, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(feeding, "AGAIN_SECONDS", (0.01,))
    return fake_tracker


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return run_in(tmp_path / "run", tiny_config(FAKE))


def steps(kept):
    return [item["step"] for _, item in kept]


def fed(run):
    """Feeds a run once, as a start does that finds nothing left to train."""
    with feeding.follow([run]):
        pass


def test_rows_behind_the_last_checkpoint_alone_are_final(run, fake):
    shutil.rmtree(run.workdir / "checkpoints" / "30")
    fed(run)
    assert steps(fake.kept) == [4, 8, 12, 16, 20, 24]
    assert fake.kept[0][1]["values"]["loss"] == tracked.of_rows(run.workdir)["loss", 4][0]
    (run.workdir / "checkpoints" / "28").mkdir()
    fed(run)
    assert steps(fake.kept) == [4, 8, 12, 16, 20, 24, 28]
    assert [number for number, _ in fake.kept] == list(range(7))
    first, second = fake.opened
    assert first.id == second.id and (first.begun, second.begun) == (False, True)


def test_a_run_that_diverged_is_sent_to_its_end(tmp_path, fake):
    """Catches a curve that ends before the steps that a person must see. Such a run never goes on."""
    with pytest.raises(Diverged):
        tiny_train(tmp_path / "run", FAKE | {"train.log_every": 1}, bad_steps=range(8, 30), look=0.01)
    assert steps(fake.kept)[-1] > 6 and fake.closed == [False]


def test_a_batch_that_was_being_sent_is_sent_again_as_it_was(run, fake, monkeypatch):
    """Catches other values after a kill: rows between a damaged checkpoint and the next are trained and timed anew."""

    def killed(self):
        raise KeyboardInterrupt  # after the flush, before the cursor says so

    shutil.rmtree(run.workdir / "checkpoints" / "30")
    with monkeypatch.context() as patch:
        patch.setattr(cursor.Cursor, "sent", killed)
        follower = feeding._Fed("wandb", run)
        with pytest.raises(KeyboardInterrupt), feeding.contextlib.ExitStack() as locks:
            follower.feed(locks)
    sent = list(fake.kept)
    assert steps(sent) == [4, 8, 12, 16, 20, 24]
    curve = run.workdir / "metrics.jsonl"
    rows = [json.loads(line) | {"loss": 99.0} for line in curve.read_text().splitlines()]
    curve.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.workdir / "checkpoints" / "30").mkdir()
    fed(run)
    assert fake.kept[:12] == sent * 2  # the same values, times and numbers
    assert steps(fake.kept[12:]) == [28, 30] and fake.kept[12][0] == 6


def test_a_tracker_that_fails_is_warned_of_once_and_goes_on_later(tmp_path, fake, capsys):
    fake.fail(3)
    result = tiny_train(tmp_path / "run", FAKE, pause=0.01, look=0.01)
    said = capsys.readouterr().err
    assert result.step == 30
    assert said.count("no network") == 1 and "goes on" in said
    assert steps(fake.kept) == [4, 8, 12, 16, 20, 24, 28, 30] and fake.closed[-1] is True


def test_a_tracker_that_hangs_holds_nothing_up(run, fake, monkeypatch, capsys):
    """Catches a run that never ends, or is killed with its scheduler's patience, because of a dead server."""
    monkeypatch.setattr(feeding, "LAST_SECONDS", 0.2)
    release = threading.Event()
    fake.failures.append(release.wait)
    began = time.monotonic()
    fed(run)
    assert time.monotonic() - began < 5 and "the same command sends the rest" in capsys.readouterr().err
    held = cursor.read_cursor(run.workdir, "wandb")
    assert held.step == -1 and len(held.outbox) == 8
    release.set()


def test_one_process_alone_feeds_a_run(run, fake):
    with feeding.contextlib.ExitStack() as locks:
        assert feeding._take(locks, run.workdir / "trackers" / "wandb.lock")
        fed(run)
        assert not fake.opened
    fed(run)
    assert len(fake.kept) == 8


def test_only_process_0_sends(run, fake, monkeypatch):
    monkeypatch.setattr(feeding.distributed, "is_first", lambda: False)
    fed(run)
    assert not fake.opened


def test_what_a_newer_version_wrote_into_a_cursor_is_passed_over(run, fake):
    fed(run)
    path = next((run.workdir / "trackers").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"newer": 1}))
    assert cursor.read_cursor(run.workdir, "wandb").number == 8


def test_a_damaged_cursor_is_named(run, fake, capsys):
    path = run.workdir / "trackers" / "wandb.json"
    path.parent.mkdir()
    path.write_text("{")
    fed(run)
    assert str(path) in capsys.readouterr().err and not fake.kept


def record(run, step, evaluation="validation", value=0.5, **more):
    key = record_key(run="run", step=step, evaluation=evaluation, corpus="random", weights="ema", grid="paper")
    return make_record(key, [Measured.within(metric="loss", value=value, stderr=0.1, n=4)], **more)


def picture():
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (255, 0, 0)).save(out, "png")
    return out.getvalue()


def test_evaluations_and_samples_are_sent_once(run, fake):
    (run.workdir / "samples").mkdir()
    (run.workdir / "samples" / "a.png").write_bytes(picture())
    write_record(run.workdir, record(run, 12))
    write_record(run.workdir, record(run, 24, "samples", extra={"png": "samples/a.png"}))
    fed(run)
    write_record(run.workdir, record(run, 12, value=0.7))  # made again: a curve has one value for a step
    write_record(run.workdir, record(run, 30))
    fed(run)
    evaluated = [item for _, item in fake.kept if item["label"]]
    assert [item["step"] for item in evaluated] == [12, 24, 30]
    assert evaluated[0]["values"] == {"validation/ema/random paper/loss/mean": 0.5}
    assert evaluated[1]["picture"] == "samples/a.png"
    assert steps(fake.kept)[:9] == sorted(steps(fake.kept)[:9])


def test_all_rows_of_a_step_are_in_one_batch(tmp_path):
    """Catches a row that is lost because another of its step was the last of a batch."""
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(items.BATCH + 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 1')
    more = [json.dumps({"step": step, "rms": {"a": 2.0}, "loss": 3.0, "warning": "w"}) + "\n" for step in range(9)]
    (tmp_path / "diagnostics.jsonl").write_text("".join(more))
    final = items.Final(1000, frozenset())
    first = items.next_batch(tmp_path, final, -1, ())
    second = items.next_batch(tmp_path, final, first.step, ())
    both = [*first.items, *second.items]
    assert len(both) == items.BATCH + 5 + 9 and first.items[-1]["step"] < second.items[0]["step"]
    assert sum("rms/a" in item["values"] for item in both) == 9
    assert sum(item["values"].get("loss") == 3.0 for item in both) == 0


def test_event_files_hold_rows_and_pictures(run, fake, monkeypatch):
    run = replace(run, config=apply_overrides(run.config, {"train.trackers": ("tensorboard",)}))
    (run.workdir / "samples").mkdir()
    (run.workdir / "samples" / "a.png").write_bytes(picture())
    write_record(run.workdir, record(run, 24, "samples", extra={"png": "samples/a.png"}))
    fed(run)
    found = tracked.of_events(run.workdir / "tensorboard")
    rows = tracked.of_rows(run.workdir)
    own = {place: values for place, values in found.items() if not place[0].startswith("samples/")}
    tracked.check_same(own, rows, tracked.as_float32)
    images = [v for event in tracked.events(run.workdir / "tensorboard") for v in event.summary.value if v.image.height]
    assert [(each.image.height, each.image.width) for each in images] == [(4, 6)]
    assert images[0].image.encoded_image_string == picture()


def test_figures_replace_those_of_the_report_before(tmp_path):
    for name in ("old", "new"):
        event_files.write_figures(tmp_path / "tensorboard", {name: picture()})
    tags = [value.tag for event in tracked.events(tmp_path / "tensorboard") for value in event.summary.value]
    assert tags == ["new"]


def test_events_that_cannot_be_written_hold_nothing_up(tmp_path, monkeypatch, capsys):
    """Catches a full disk that ends or holds up training."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_files.RecordWriter, "write", refuse)
    assert tiny_train(tmp_path / "run", look=0.01).step == 30
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_tracker_that_cannot_be_used_is_refused_before_training(run, fake, monkeypatch):
    fake.missing[0] = "there is no login for api.wandb.ai; run `wandb login`"
    with pytest.raises(ConfigError, match="trackers has wandb: there is no login .*or leave wandb out"):
        fed(run)
    monkeypatch.setitem(table.TRACKERS, "wandb", replace(FAKE_ROW, package="no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package is not installed; pip install 'rfjax\[trackers\]'"):
        fed(run)
    with pytest.raises(ConfigError, match="config.train.trackers is .*aim.*tensorboard, wandb, mlflow"):
        apply_overrides(run.config, {"train.trackers": ("aim",)})


def test_libraries_are_imported_by_the_modules_of_their_rows_alone():
    """Catches a start that takes seconds longer, or fails, for those who chose no such tracker."""
    for path in Path(rfjax.__file__).parent.rglob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
        for name in found & {"wandb", "mlflow"}:
            assert path.stem == table.TRACKERS[name].module.split(".")[-1]


def test_trackers_may_change_when_a_run_goes_on(tmp_path):
    tiny_train(tmp_path / "run", {"train.steps": 30})
    assert tiny_train(tmp_path / "run", {"train.steps": 30, "train.trackers": ()}).step == 30
    with pytest.raises(RfjaxError):
        tiny_train(tmp_path / "run", {"train.steps": 31})
