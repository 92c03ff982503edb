import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(quick_compilation):
    """All of these."""
