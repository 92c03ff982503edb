"""Runs a test command and adds its outcome as a dated row to analysis/test_records.md.

python analysis/record_tests.py [--note=TEXT] -- python -m pytest
"""

import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

TABLE = Path(__file__).parent / "test_records.md"
COUNTS = ("passed", "skipped", "failed", "errors")


def main() -> int:
    split = sys.argv.index("--")
    command = sys.argv[split + 1 :]
    note = " ".join(word.removeprefix("--note=") for word in sys.argv[1:split])
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    minutes = (time.monotonic() - began) / 60
    row = table_row(datetime.now(UTC), _versions(command[0]), command, process.returncode, minutes, lines, note)
    with TABLE.open("a") as file:
        file.write(row)
    print(f"record: {TABLE}\n{row}", end="")
    return process.returncode


def table_row(
    now: datetime,
    versions: tuple[str, ...],
    command: list[str],
    status: int,
    minutes: float,
    lines: list[str],
    note: str,
) -> str:
    """A row of the table: `versions` are those of the commit, Python, JAX and Flax and the machine; `lines` the output.

    The names of failed tests follow the note.
    """
    summary = next((line for line in reversed(lines) if re.search(r"\d+ \w+.* in [\d.]+s", line)), "")
    found = {word.rstrip("s"): number for number, word in re.findall(r"(\d+) (\w+)", summary.split(" in ")[0])}
    counts = [found.get(name.rstrip("s"), "0" if summary else "") for name in COUNTS]
    failures = [f"`{line.split(' - ')[0].strip()}`" for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    suite = shlex.join(["pytest", *command[command.index("pytest") + 1 :]])
    seconds = re.findall(r" in ([\d.]+)s", summary)
    notes = "; ".join(filter(None, [note, f"{found['warning']} warnings" if "warning" in found else "", *failures]))
    cells = (
        f"{now:%Y-%m-%d %H:%M}",
        *versions,
        f"`{suite}`",
        str(status),
        *counts,
        f"{minutes:.1f}",
        *(seconds or [""]),
        notes,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _versions(python: str) -> tuple[str, ...]:
    script = "import flax, jax, platform; print(platform.python_version(), jax.__version__, flax.__version__)"
    versions = _output(python, "-c", script).split() or [platform.python_version(), "", ""]
    changed = " (changed)" if _output("git", "status", "--porcelain", "-uno") else ""
    return (_output("git", "rev-parse", "--short", "HEAD") + changed, *versions, platform.machine())


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
