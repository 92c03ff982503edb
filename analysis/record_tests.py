"""Runs a test command and keeps its outcome, dated, in analysis/test_records/.

python analysis/record_tests.py -- python -m pytest
"""

import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "test_records"


def main() -> int:
    command = sys.argv[sys.argv.index("--") + 1 :]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    minutes = (time.monotonic() - began) / 60
    versions = subprocess.run(
        [command[0], "-c", "import jax, flax; print(f'jax {jax.__version__}, flax {flax.__version__}')"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    now = datetime.now(UTC)
    tail = [line for line in lines if re.search(r"passed|failed|error|FAILED|ERROR", line)][-30:]
    FOLDER.mkdir(exist_ok=True)
    record = FOLDER / f"{now:%Y-%m-%d-%H%M}-python{platform.python_version()}.txt"
    record.write_text(
        f"{now:%Y-%m-%d %H:%M} UTC, commit {commit}{' with uncommitted changes' if dirty else ''}\n"
        f"Python {platform.python_version()}, {versions}, {platform.machine()}\n"
        f"{' '.join(['pytest', *command[command.index('pytest') + 1 :]])}\n"
        f"exit status {process.returncode} after {minutes:.1f} minutes\n\n{''.join(tail)}"
    )
    print(f"record: {record}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
