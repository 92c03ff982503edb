"""The reading path of the core, as docs/README.md lists it, stays one that a newcomer can walk in an afternoon."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = "## The reading path of the core\n"
MOST_FILES, MOST_LINES = 14, 2300


def reading_path() -> list[str]:
    """The numbered files of the section, in order."""
    section = (ROOT / "docs/README.md").read_text().split(HEADING)[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def test_the_reading_path_exists_and_stays_short():
    """A file that was moved, a file too many, or files that grew: then the path must be chosen anew."""
    files = reading_path()
    assert "rfjax/training/step.py" in files and len(set(files)) == len(files)
    missing = [name for name in files if not (ROOT / name).is_file()]
    assert not missing, f"docs/README.md sends readers to {', '.join(missing)}, which is not there"
    assert len(files) <= MOST_FILES
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in files}
    assert sum(lines.values()) <= MOST_LINES, lines
