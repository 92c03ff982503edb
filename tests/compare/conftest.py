import pytest

from helpers.image_sides import write_sides
from rfjax.cli import main


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished study of two sides and three raters; tests only read it."""
    folder = write_sides(tmp_path_factory.mktemp("study"), ["zebra-run", "yak-run"])
    command = ["compare", str(folder / "zebra-run"), str(folder / "yak-run"), f"--prompts={folder / 'prompts.txt'}"]
    assert main([*command, f"--out={folder / 'out'}", "--raters=3", "--pairs=10", "--checks=0.4"]) == 0
    return folder
