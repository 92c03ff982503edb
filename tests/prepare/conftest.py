import photographs
import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The photographs with sidecars; not to be changed."""
    return photographs.write_folder(tmp_path_factory.mktemp("photographs") / "folder")
