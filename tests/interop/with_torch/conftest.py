import pytest

from rfjax.interop.exporting import export_run


@pytest.fixture(scope="session")
def exported(runs, tmp_path_factory):
    """(run, its diffusers folder), written once for each variant."""
    made = {}

    def folder(variant, family="small"):
        if (variant, family) not in made:
            run = runs(variant, family)
            out = tmp_path_factory.mktemp("exported") / f"{family}-{variant}"
            made[variant, family] = run, export_run(run.folder, layout="diffusers", out=out)
        return made[variant, family]

    return folder
