"""The study of stills mixed with clips compares runs with equally many stills."""

from pathlib import Path

from rfjax.study.study import load_study
from rfjax.training.run import plan_run

STUDY = Path(__file__).parents[2] / "analysis" / "mixed_stills.py"


def test_mixed_runs_and_runs_on_stills_show_equally_many_stills():
    points = {point.id: point.config for point in load_study(STUDY).points}
    mixed, stills = (points[name] for name in ("mixed-seed0", "stills-seed0"))
    shown, others = plan_run(mixed).stream.examples_of_parts(mixed.train.steps)
    assert plan_run(stills).stream.examples_of_parts(stills.train.steps)[0] == shown == 2 * others
    assert mixed.model == stills.model and mixed.train.learning_rate == stills.train.learning_rate
