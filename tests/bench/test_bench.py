"""`rfjax bench`: the arithmetic of its report compared with numbers by hand, and a small run."""

import json
import math
from pathlib import Path

import pytest

from rfjax import config_files
from rfjax.bench.report import COLLECTIVES_ALONE, COLLECTIVES_UNKNOWN, lines, summary
from rfjax.cli import main
from rfjax.config import from_dict
from rfjax.data.corpus import load_corpus
from rfjax.models.flops import recompute_flops, training_flops

CONFIG = Path(__file__).parents[2] / "configs" / "shapes.py"
SMALL = {"model.depth": "2", "model.hidden": "32", "model.head_size": "16", "train.batch_size": "4"}


def made(**changes):
    given = {
        "batch_size": 8,
        "flops_per_image": 3_000,
        "recomputed_per_image": 500,
        "devices": 1,
        "peak": 1e6,
        "datasheet_peak": None,
        "loop": {
            "step": [0.05, 0.04, 0.09],
            "waiting_for_data": [0.001, 0.0, 0.002],
            "placing": [0.002] * 3,
            "waiting_for_metrics": [0.03] * 3,
        },
        "loader": 0.01,
        "parts": {"forward": 0.011, "forward_backward": 0.034, "optimiser": 0.006},
    }
    return summary(**given | changes)


def test_the_report_is_arithmetic_on_what_was_measured():
    """Catches a mean for the median, recomputed operations counted as achieved, a backward pass with
    the forward one in it, and a remainder that is hidden."""
    found = made()
    assert found["step_seconds"] == 0.05 and found["images_per_second"] == pytest.approx(160)
    assert found["achieved_flops_per_second"] == pytest.approx(480_000)
    assert found["share_of_measured_peak"] == pytest.approx(0.48) and found["share_of_datasheet_peak"] is None
    assert found["floor_seconds"] == pytest.approx(8 * 3_500 / 1e6)
    phases = {name: phase["seconds"] for name, phase in found["phases"].items()}
    assert phases["backward"] == pytest.approx(0.023)
    assert phases["remainder"] == pytest.approx(0.05 - 0.034 - 0.006)
    assert found["phases"]["waiting_for_data"]["share_of_loop"] == pytest.approx(0.003 / 0.18)
    assert made(datasheet_peak=2e6)["share_of_datasheet_peak"] == pytest.approx(0.24)


def test_what_is_not_known_is_null_with_its_reason():
    """Catches a time for exchanges that were not measured, and a part that did not fit counted as none."""
    assert made()["phases"]["collectives"] == {"seconds": 0.0, "what": COLLECTIVES_ALONE}
    assert made(devices=2)["phases"]["collectives"] == {"seconds": None, "what": COLLECTIVES_UNKNOWN}
    phases = made(parts={"forward": 0.01, "forward_backward": "does not fit alone: 9 GiB", "optimiser": 0.006})[
        "phases"
    ]
    assert phases["backward"] == {"seconds": None, "what": "does not fit alone: 9 GiB"}
    assert phases["remainder"]["seconds"] is None and phases["forward"]["seconds"] == 0.01


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch, quick_compilation):
    """A small network from end to end: operations are the formula's, every phase has a number, and the JSON has no NaN
    or infinity."""
    from rfjax.bench import peak

    monkeypatch.setitem(peak.SIDES, "cpu", (64,))
    out = tmp_path / "bench.json"
    overrides = [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert main(["bench", f"--config={CONFIG}", "--steps=2", f"--json={out}", *overrides]) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    config = config_files.load(CONFIG, SMALL)
    shapes = load_corpus(config.data, config.seed).shapes
    assert record["flops_per_step"] == 4 * training_flops(config.model, shapes)
    assert record["recomputed_flops_per_step"] == 4 * recompute_flops(config.model, shapes, config.train.remat)
    assert record["attention"] == "xla" and record["peak"]["devices"] == record["hardware"]["devices"]
    assert len(record["step_seconds_all"]) == 2
    for name, phase in record["phases"].items():
        assert name.replace("_", " ") in printed and (name == "collectives" or math.isfinite(phase["seconds"]))
    assert record["phases"]["forward"]["seconds"] > 0 and record["phases"]["optimiser"]["seconds"] > 0
    assert f"{record['images_per_second']:,.2f} images/s" in printed and "\n".join(lines(record)) in printed
    known = "\n".join(lines(record | {"share_of_datasheet_peak": 0.24}))
    assert "24.0% of the datasheet's for bfloat16" in known  # the peak of a config in float32, too


@pytest.mark.parametrize("part, batch", [(None, 4), (1, 12)], ids=["largest", "smallest"])
def test_a_bucket_is_measured_with_its_own_batch(monkeypatch, part, batch):
    """Catches rates that are computed with the config's batch size, though `tokens_per_batch` gave the measured bucket
    a multiple of it."""
    from rfjax.bench import command, peak, phases
    from rfjax.training.run import Run

    model = {"depth": 1, "hidden": 32, "head_size": 16, "position_grid": 8, "position_tokens": 4, "position_span": 4.0}
    data = {"corpus": "motion", "world": "first", "buckets": ("4x16x16@0.5", "16x16@0.5")}
    settings = {"model": model | {"patch_size": 2}, "data": data, "evaluation": {"geneval": {"prompts_per_task": 0}}}
    config = from_dict(settings | {"train": {"batch_size": 4, "tokens_per_batch": -1}})
    if part is not None:
        monkeypatch.setattr(Run, "largest_part", part)
    loop = phases.Loop(**{name: [2.0] for name in phases.Loop._fields})
    monkeypatch.setattr(peak, "matmul_flops_per_second", lambda devices, dtype: {"flops_per_second": 1e9})
    monkeypatch.setattr(phases, "loader_seconds", lambda run, steps: 0.1)
    monkeypatch.setattr(phases, "run_loop", lambda run, steps, trace: loop)
    parts = dict.fromkeys(("forward", "forward_backward", "optimiser"), 0.5)
    monkeypatch.setattr(phases, "part_seconds", lambda run, steps: parts)
    record = command.measure(config, 1, None, lambda text: None)
    assert record["latent_size"] == ([4, 16, 16] if part is None else [16, 16])
    assert record["batch_size"] == record["config"]["train"]["batch_size"] == batch
    assert record["images_per_second"] == pytest.approx(batch / 2.0)


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["bench", f"--config={CONFIG}", "--steps=0"]) == 2
    assert "--steps is 0; it must be at least 1" in capsys.readouterr().err
    assert main(["bench", f"--config={CONFIG}", "--config.train.attention=splash"]) == 2
    assert "'splash', which cannot run here: it runs on tpu, and this is cpu" in capsys.readouterr().err
