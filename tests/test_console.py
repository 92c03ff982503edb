"""Output that cannot be written never ends the work, and never changes its exit status."""

import io
import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from helpers import child_process
from helpers.coloured_pictures import picture
from helpers.stand_ins import prepare
from rfjax import cli
from rfjax.cli.processes import say
from rfjax.console import UnfailingStream, in_encoding, quiet_background
from rfjax.prepare import progress as prepare_progress
from rfjax.training import progress


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        self.write("")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("1.78 × 10⁻¹²", "1.78 x 10^-12"), ("±0.3 √score", "+-0.3 sqrt score"), ("猫", "\\u732b"), ("plain", "plain")],
)
def test_signs_that_a_terminal_lacks_are_written_out(text, shown):
    assert in_encoding(text, "ascii") == shown and in_encoding(text, "utf-8") == text


def test_a_lost_log_is_told_once_and_raises_nothing():
    told = []
    stream = UnfailingStream(Full(), told.append)
    for _ in range(3):
        print("step", file=stream, flush=True)
    assert told == ["No space left on device"] and not stream.isatty()
    closed = io.StringIO()
    closed.close()
    print("step", file=UnfailingStream(closed), flush=True)


FIT = ("fit", str(child_process.ROOT / "analysis" / "results" / "default_study.csv"), "--law=power", "--resamples=100")


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("{command}", {"PYTHONIOENCODING": "ascii"}),
        ("{command} >/dev/full", {}),
        ("{command} >&- 2>&-", {}),
        ("{command} 2>&1 | true; exit ${{PIPESTATUS[0]}}", {}),
    ],
)
def test_the_exit_status_is_that_of_the_work(tmp_path, shell, environment):
    """Catches a UnicodeEncodeError, a full disk or a reader that has gone, after all the work."""
    command = f"{sys.executable} -m rfjax {' '.join(FIT)} --out={tmp_path / 'fit.json'}"
    environment = child_process.environment() | environment
    done = subprocess.run(["bash", "-c", shell.format(command=command)], env=environment, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert (tmp_path / "fit.json").is_file()
    assert environment.get("PYTHONIOENCODING") != "ascii" or done.stdout.isascii()


def test_control_characters_of_users_names_move_no_terminal(monkeypatch, tmp_path, capsys):
    """Through an error, a line of progress and `rfjax inspect`: a key, a caption and a path with an escape."""
    evil = "a\x1b[2J\rb"
    assert cli.main(["fit", str(tmp_path / evil)]) == 2
    progress.note(evil)
    prepare_progress.say(evil)
    say(evil)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture("red"))
    (folder / "a.json").write_text(json.dumps({"caption": f"red {evil}"}))
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", "--validation-share=0") == 0
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    heard = capsys.readouterr()
    assert "\x1b" not in heard.out + heard.err and heard.err.count("\\x1b[2J") >= 3 and "\\x1b[2J" in heard.out


def test_what_a_background_thread_cannot_raise_is_shown_but_for_a_closed_loop(monkeypatch):
    """Catches a traceback under the clear message that data of a checkpoint are missing."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(str(unraisable.exc_value)))
    quiet_background()
    asyncio = logging.getLogger("asyncio")
    try:
        for error in (RuntimeError("Event loop is closed"), RuntimeError("else"), ValueError("Event loop is closed")):
            sys.unraisablehook(SimpleNamespace(exc_value=error))
        assert seen == ["else", "Event loop is closed"]
        texts = ("exception was never retrieved", "x")
        said = [logging.LogRecord("asyncio", 40, "", 0, text, (), None) for text in texts]
        assert [record.getMessage() for record in said if asyncio.filter(record)] == ["x"]
    finally:
        asyncio.removeFilter(asyncio.filters[-1])
