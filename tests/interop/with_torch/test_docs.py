"""The code of docs/export.md runs as it stands there."""

import re
from pathlib import Path

import numpy as np
from test_sampling import MODEL

from helpers.random_runs import make_config, make_run
from rfjax.interop.exporting import export_run

DOCS = Path(__file__).parents[3] / "docs/export.md"


def test_what_a_pytorch_user_types_runs(tmp_path, monkeypatch):
    """Catches a missing import, a shape that does not fit, a gradient that is kept."""
    run = make_run(tmp_path / "run", make_config(MODEL, {"corpus": "shapes", "image_size": 16}))
    export_run(run.folder, layout="diffusers", out=tmp_path / "exported")
    (block,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        if "SD3Transformer2DModel.from_pretrained" in code
    ]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, str(DOCS), "exec"), names)  # noqa: S102, our own documentation
    assert names["images"].shape == (2, 16, 16, 3) and np.isfinite(names["images"]).all()
