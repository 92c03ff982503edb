import pytest

from helpers import tiny_scorers


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    tiny_scorers.mask2former().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return tiny_scorers.clip(tmp_path_factory.mktemp("clip"))
