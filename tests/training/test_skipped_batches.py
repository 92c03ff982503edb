"""A run that goes back to a checkpoint of another and passes over batches: which ones, for good, and nothing else."""

import json

import pytest
from test_branches import bits, same

from helpers.child_process import ROOT
from helpers.training_tiny import rows, tiny_config, tiny_train
from rfjax import config as configs
from rfjax.cli import main
from rfjax.errors import ConfigError, Preempted
from rfjax.study import run as study_run
from rfjax.training import checkpoint, lineage
from rfjax.training.run import Trunk

BAD = 14  # this step's batch is not finite
SKIPPED = {"train.steps": 30, "train.keep_every": 6}


@pytest.fixture(scope="module")
def blown_up(tmp_path_factory):
    """A run with a step that was skipped, and a checkpoint of step 12 before it."""
    workdir = tmp_path_factory.mktemp("skips") / "blown_up"
    tiny_train(workdir, SKIPPED, bad_steps=[BAD])
    return workdir


def go_back(origin, workdir, batches, step=12, overrides=SKIPPED, **more):
    return tiny_train(workdir, overrides, trunk=[str(origin), origin.name, step, batches], bad_steps=[BAD], **more)


def test_a_branch_passes_over_so_many_batches(blown_up, tmp_path):
    """Catches an offset that is one off, and the trunk's own batches once more. Batch 14 is bad: it comes two steps
    after the departure without an offset, one after it with an offset of 1, at it with 2, and never with 3."""
    assert checkpoint.read_facts(blown_up, 30)["skipped_in_row"] == 0
    assert [row["skipped"] for row in rows(blown_up) if row["step"] in (12, 16)] == [0, 1]
    for batches, expected in ((1, 1), (2, 1), (3, 0)):
        workdir = tmp_path / str(batches)
        go_back(blown_up, workdir, batches)
        assert rows(workdir)[-1]["skipped"] == expected and rows(workdir)[:3] == rows(blown_up)[:3]
        record = json.loads((workdir / "run.json").read_text())
        assert record["trunk"]["skip_batches"] == batches and record["skips"] == [[12, batches]]
        assert record["images"] == 30 * 8 and record["parent"] is None


def test_a_resumed_branch_goes_on_with_its_offset(blown_up, tmp_path):
    """Catches an offset that only the first attempt has. The second is given without saying where the run came from."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    go_back(blown_up, whole, 3)
    polls = iter([False] * 9 + [True] * 1000)
    with pytest.raises(Preempted):
        go_back(blown_up, stopped, 3, stop=lambda: next(polls))
    with pytest.raises(ConfigError, match="left blown_up@12 without 3 batches, not blown_up@12 without 4 batches"):
        go_back(blown_up, stopped, 4)
    tiny_train(stopped, SKIPPED, bad_steps=[BAD])
    assert same(bits(stopped, 30)[0], bits(whole, 30)[0]) and rows(stopped) == rows(whole)


def test_the_offset_is_passed_on(blown_up, tmp_path):
    """Catches a branch of a branch, and a run from its weights, that see the batches that were passed over."""
    go_back(blown_up, tmp_path / "first", 3)
    go_back(tmp_path / "first", tmp_path / "second", 2, step=24)
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["skips"] == [[12, 3], [24, 2]]
    assert lineage.new_skips(None, tmp_path / "second") == {"skips": [[0, 5]]}
    assert lineage.new_skips(None, blown_up) == {} == lineage.new_skips(Trunk(str(blown_up), "a", 12), None)


def test_what_is_no_way_back_is_refused(blown_up, tmp_path):
    with pytest.raises(ConfigError, match="config.seed is 0 in the trunk and 1 in this run"):
        go_back(blown_up, tmp_path / "other", 3, overrides=SKIPPED | {"seed": 1})
    with pytest.raises(ConfigError, match="no checkpoint of step 13"):
        go_back(blown_up, tmp_path / "absent", 3, step=13)
    with pytest.raises(ConfigError, match="nothing is left of a run of 30 steps"):
        go_back(blown_up, tmp_path / "end", 3, step=30)
    assert not list(tmp_path.iterdir())
    assert main(["train", f"--config={ROOT}/configs/shapes.py", f"--workdir={tmp_path / 'x'}", "--skip-batches=5"]) == 2


SKIPS, BRANCHES = "--skip-batches=5", "--config.train.steps=8"


@pytest.mark.parametrize(
    "left, option, role",
    [
        *(("run", SKIPS, "run"), ("trunk", SKIPS, "trunk"), ("branch", SKIPS, "branch"), ("sweep", SKIPS, "sweep")),
        *(("run", BRANCHES, "branch"), ("trunk", BRANCHES, "branch"), ("branch", BRANCHES, "branch")),
        ("sweep", BRANCHES, "sweep"),
    ],
)
def test_a_run_that_leaves_another_has_its_role_in_the_study(tmp_path, monkeypatch, left, option, role):
    """Catches a run of a sweep, or one at a constant rate, that becomes a point of the law."""
    given, sweep = [], {"train.role": "sweep"} if left == "sweep" else {}
    (tmp_path / "a" / checkpoint.FOLDER / "6").mkdir(parents=True)
    config = tiny_config({"train.schedule": "constant"} | sweep)
    (tmp_path / "a" / "config.json").write_text(json.dumps(configs.to_dict(config)))
    (tmp_path / "a" / "run.json").write_text(json.dumps({"run": "a"} | ({} if left == "run" else {"role": left})))
    monkeypatch.setattr(study_run, "run_config", lambda *args, **place: given.append(place))
    assert main(["train", f"--branch={tmp_path / 'a'}@6", option, f"--workdir={tmp_path / 'b'}"]) == 0
    assert [place["role"] for place in given] == [role] and given[0]["trunk"].run == "a"
