"""The notebooks run from top to bottom on the table beside them, and are stored without outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ANALYSIS = Path(__file__).parents[2] / "analysis"
# A notebook -> words that its outputs must hold, which a wrong or empty result would lack.
SAYS = {
    "fit_scaling_law": (
        "saturating",
        "parametric bootstrap",
        "of 28 starts agree",
        "leave_one_out_rms",
        "without the largest size",
        "figures of different counts of C do not meet",
        "cannot be tested",
        "image/svg+xml",
    ),
    "correlate_geneval": (
        "optimistic, as the runs are branches of 5 trunks",
        "prompts they share",
        "single_object",
        "share_first",
        "image/svg+xml",
    ),
    "plan_compute": ("normal noise between the 5 trunks", "optimal params", "fixed steps", "image/svg+xml"),
}


def test_every_notebook_is_tested():
    assert {path.stem for path in ANALYSIS.glob("*.ipynb")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_a_notebook_runs_and_is_stored_without_outputs(name, monkeypatch):
    # The kernel works beside the notebook, where a relative path to the package leads nowhere.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ANALYSIS.parent), os.environ.get("PYTHONPATH", "")]))
    stored = nbformat.read(ANALYSIS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), f"clear the outputs of {name}"
    NotebookClient(
        stored, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ANALYSIS)}}
    ).execute()
    outputs = str([cell.outputs for cell in code])
    for words in SAYS[name]:
        assert words in outputs
    assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"], "a notebook warns"
