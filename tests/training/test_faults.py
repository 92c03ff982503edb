"""Storage that fails or hangs, and work that stands still."""

import errno
import time

import pytest

from helpers.training_tiny import ended, rows, start_processes, tiny_train
from rfjax.errors import RfjaxError
from rfjax.training import checkpoint

OVERRIDES = {"train.steps": 12}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("faults") / "undisturbed"
    tiny_train(workdir, OVERRIDES)
    return workdir


class Storage:
    """Stands before Orbax's manager; its next `failures` calls of one method are input/output errors."""

    def __init__(self, monkeypatch, method, failures, number=errno.EIO):
        self.left, self.calls = failures, 0
        true = getattr(checkpoint.ocp.CheckpointManager, method)

        def fails(manager, *arguments, **named):
            self.calls += 1
            if self.left:
                self.left -= 1
                raise OSError(number, "of the test")
            return true(manager, *arguments, **named)

        monkeypatch.setattr(checkpoint.ocp.CheckpointManager, method, fails)
        monkeypatch.setattr(checkpoint, "SAVE_AGAIN_SECONDS", (0.01, 0.02, 0.03))


@pytest.mark.parametrize("method", ["save", "wait_until_finished", "check_for_errors"])
def test_a_save_that_fails_for_a_while_is_made_up_for(tmp_path, undisturbed, monkeypatch, capsys, method):
    """Catches: giving up at once; a retry that leaves a checkpoint out, or changes what is trained."""
    storage = Storage(monkeypatch, method, 2 if method == "save" else 1)
    tiny_train(tmp_path, OVERRIDES)
    assert storage.left == 0
    facts = [checkpoint.read_facts(path, 12)["checksums"] for path in (tmp_path, undisturbed)]
    assert facts[0] == facts[1] and rows(tmp_path) == rows(undisturbed)
    assert 12 in checkpoint.steps_saved(tmp_path)
    if method == "save":
        assert capsys.readouterr().err.count("Trying again in") == 2


@pytest.mark.parametrize(("number", "calls"), [(errno.EIO, 4), (errno.ENOSPC, 1)])
def test_storage_that_stays_broken_ends_the_run(tmp_path, monkeypatch, number, calls):
    """Bounded: three more attempts, and none where waiting cannot help."""
    storage = Storage(monkeypatch, "save", 100, number)
    with pytest.raises(RfjaxError, match="a checkpoint could not be written to .* give the same command again"):
        tiny_train(tmp_path, OVERRIDES)
    assert storage.calls == calls


def test_work_that_stands_still_is_ended_with_a_word_on_what_it_did(tmp_path):
    """A corpus that takes for ever stands for storage that hangs: nothing raises. Catches a watch that
    only the blocked thread itself could heed, and one that a long compilation would set off."""
    began = time.monotonic()
    overrides = {"train.stall_seconds": 25.0}
    ((status, said),) = ended(start_processes(tmp_path / "run", 1, pause=1000.0, overrides=overrides), 200)
    assert status == 75 and time.monotonic() - began > 25
    assert "no progress for" in said and "while training" in said and "the same command" in said, said
