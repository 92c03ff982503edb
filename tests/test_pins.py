"""What must not change from release to release, and does not depend on the processor.

`analysis/pins.py` compares more between two checkouts on one machine: the bits of trained parameters too. The names
of evaluation records are pinned in tests/evaluation/test_records.py.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from helpers.random_runs import DATA, MODEL, VARIANTS, make_config, make_run
from rfjax.cli import main
from rfjax.interop.exporting import export_run
from rfjax.training.run import describe, plan_run

PINNED = Path(__file__).parent / "pinned"
# SHA-256 of the weights' file, by (layout, dtype)
EXPORTS = {
    ("diffusers", "f32"): "a92d7696f1f4dd81f9e1df74977caa26935587e0b4f58e0e6cce6bb4c59c162e",
    ("diffusers", "bf16"): "71e53525f15286315b9250367ec7616043f34e1d6c69053ec0f59b79c865abfa",
    ("plain", "f32"): "d7e16a8d40f64c3c30c6a2f731db802b6f4e1fdac716b8ede3834aa889f79cee",
    ("plain", "bf16"): "c623ca019b34bf1b36f7218d03aca7600f1fdbb6502b241a3d6e1b3e1509b5ff",
}
RUN_KEYS = (
    "schema run study point depth hidden heads seed learning_rate params flops_per_image flops_forward_per_image "
    "buckets image_tokens training_images batch_size steps corpus corpus_fingerprint made_with parent starts"
)


def test_exports_of_fixed_weights_are_the_same_bytes(tmp_path):
    """Catches a transform, a name, an order of tensors or a rounding that has changed."""
    run = make_run(tmp_path / "run", make_config(MODEL | VARIANTS["dual_qk_norm"], DATA))
    found = {}
    for layout, dtype in EXPORTS:
        folder = export_run(run.folder, layout=layout, out=tmp_path / f"{layout}-{dtype}", dtype=dtype)
        (file,) = folder.glob("*.safetensors")
        found[layout, dtype] = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == EXPORTS


@pytest.mark.parametrize("law", ["saturating", "parametric"])
def test_a_fit_of_six_runs_is_what_it_was(tmp_path, law, capsys):
    """To 1e-6, and the ends of intervals to 1 %. Catches another minimum, another draw, a key that is gone."""
    table, out = PINNED / "six_runs.csv", tmp_path / "fit.json"
    assert main(["fit", str(table), "--law", law, "--budget", "1e15", "--out", str(out)]) == 0
    found, pinned = (json.loads(path.read_text()) for path in (out, PINNED / f"fit_{law}.json"))
    assert_near(found, pinned)


def assert_near(found, pinned, place="fit"):
    """Raises AssertionError at the first place where two values of JSON differ by more than processors do."""
    if isinstance(pinned, dict):
        assert list(found) == list(pinned), place
        for key in pinned:
            assert_near(found[key], pinned[key], f"{place}.{key}")
    elif isinstance(pinned, list):
        assert len(found) == len(pinned), place
        for number, (one, other) in enumerate(zip(found, pinned, strict=True)):
            assert_near(one, other, f"{place}[{number}]")
    elif isinstance(pinned, float):
        # An end of an interval is one resample's minimum, which may be flat: there processors differ by up to 0.25 %.
        tolerance = 1e-2 if place.endswith((".low", ".high")) else 1e-6
        if place.endswith((".A.low", ".A.high", ".B.low", ".B.high")):  # exponentials of what is fitted
            found, pinned, tolerance = np.log(found), np.log(pinned), 5e-2
        assert found == pytest.approx(pinned, rel=tolerance, abs=1e-12), place
    else:
        assert found == pinned, place


def test_the_keys_of_run_json_are_what_they_were():
    """Catches a fact that readers of the folder look for under another name."""
    assert " ".join(describe(plan_run(make_config()), None)) == RUN_KEYS
