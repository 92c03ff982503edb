import pytest

from helpers.random_runs import DATA, MODEL, SD3_DATA, SD3_MODEL, VARIANTS, make_config, make_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A run of each variant in diffusers' layout, made when asked for."""
    made = {}

    def run(variant, family="small"):
        if (variant, family) not in made:
            model, data = (MODEL, DATA) if family == "small" else (SD3_MODEL, SD3_DATA)
            folder = tmp_path_factory.mktemp("runs") / f"{family}-{variant}"
            made[variant, family] = make_run(folder, make_config(model | VARIANTS[variant], data))
        return made[variant, family]

    return run


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(quick_compilation):
    """All of these."""
