"""Guidance away from a weaker run: by hand, from folders, in names, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.random_runs import make_config, make_run
from rfjax.config import SamplerConfig, apply_overrides
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import generator_of, make_generator
from rfjax.evaluation.guide import Guide, guide_of
from rfjax.evaluation.kinds.prompted import check_sampling
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.flow.formulation import parse_formulation
from rfjax.training.run import open_run

SMALL = {"depth": 2, "hidden": 16, "head_size": 8}
DATA = {"corpus": "random", "image_size": 4, "channels": 2, "context_tokens": 2, "context_size": 4, "pooled_size": 4}
EULER = SamplerConfig(steps=3, guidance_scale=2.5)


def conditions(count):
    rng = np.random.default_rng(0)
    return Conditions(*(np.float32(rng.standard_normal((count, *shape))) for shape in ((2, 4), (4,))))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run, a smaller run on its corpus, one on another corpus, and one of another formulation."""
    root, base = tmp_path_factory.mktemp("guides"), make_config(SMALL, DATA)
    changed = {
        "run": {},
        "smaller": {"model.depth": 1},
        "elsewhere": {"data.channels": 3},
        "other": {"formulation": "eps/linear"},
    }
    for name, changes in changed.items():
        make_run(root / name, apply_overrides(base, changes))
    return root


def test_the_field_is_guided_away_from_the_weaker_network():
    """Catches strong and weak exchanged, the null caption kept, a scale off by one, and guidance outside its interval:
    against Euler's steps written out, for fields that are linear in z."""
    rows, ids = conditions(2), np.array([[0, 0], [1, 0]])
    field = lambda rate, z, t, context, pooled: rate * z + pooled.sum(1)[:, None, None, None, None]  # noqa: E731
    strong, weak = np.float32(0.3), np.float32(-0.2)
    guide, shape, formulation = Guide(field, weak), (1, 4, 4, 2), parse_formulation("rf")
    for interval in ((0.0, 1.0), (0.5, 1.0)):
        sampler = replace(EULER, guidance_from=interval[0], guidance_to=interval[1])
        generate = make_generator(field, sampler, formulation, shape, batch_size=2, guide=guide)
        found = generate(strong, 7, ids, rows)
        start = make_generator(lambda p, z, *_: 0.0 * z, sampler, formulation, shape, batch_size=2)(
            strong, 7, ids, rows
        )
        z = start.astype(np.float64)
        for t in (1.0, 2 / 3, 1 / 3):
            rate = weak + 2.5 * (strong - weak) if interval[0] <= t else strong
            z = z - (rate * z + rows.pooled.sum(1)[:, None, None, None, None]) / 3
        np.testing.assert_allclose(found, z, rtol=1e-5, atol=1e-5)


def test_a_run_guided_by_itself_is_not_guided(folders):
    """Catches raw weights in place of the average, another step's, and a guide that is read and not used."""
    run, ids, rows = open_run(folders / "run"), np.array([[0, 0], [1, 0]]), conditions(2)
    with run.computing():
        params = run.restore_params(3, "ema")
        made = [
            generator_of(run, sampler, 2)(params, 0, ids, rows)
            for sampler in (
                replace(EULER, guidance_scale=1.0),
                replace(EULER, guide=f"{folders / 'run'}@3"),
                replace(EULER, guide=f"{folders / 'smaller'}@3"),
            )
        ]
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)
    assert np.abs(made[2] - made[0]).max() > 0.01


def test_the_guide_is_in_the_name(folders, tmp_path):
    """Catches scores under different guides in one record: of another step, and of runs that have one name."""
    config = make_config(SMALL, DATA)
    names = [
        SamplerName.of(config, replace(EULER, guide=guide))
        for guide in ("", f"{folders / 'run'}@3", f"{folders / 'run'}@2", f"{folders / 'smaller'}@3")
    ]
    texts = [name.format() for name in names]
    assert len(set(texts)) == 4 and texts[0] == "euler-3-cfg2.5-shift1"
    assert texts[1].startswith("euler-3-auto(study.point@3.") and texts[1].endswith(")2.5-shift1")
    assert [SamplerName.parse(text) for text in texts] == names


@pytest.mark.parametrize(
    "guide, said",
    [
        ("elsewhere@3", "not on the corpus of study/point"),
        ("other@3", "a run of the formulation eps/linear, and study/point has rf"),
        ("run@4", "4"),
        ("none@3", "none is not a run's folder"),
    ],
)
def test_what_cannot_guide_is_refused_before_sampling(folders, guide, said):
    with pytest.raises(ConfigError, match=said):
        check_sampling(open_run(folders / "run"), "geneval", [replace(EULER, guide=f"{folders / guide}")])


def test_a_negative_prompt_and_a_step_that_is_missing_are_refused(folders):
    run = open_run(folders / "run")
    generate = generator_of(run, replace(EULER, guide=f"{folders / 'run'}@3"), 2)
    with pytest.raises(ConfigError, match="a negative prompt has no effect"):
        generate(None, 0, np.array([[0, 0]]), conditions(1), negative=conditions(1))
    with pytest.raises(ConfigError, match=r"evaluation.sampler.guide.*runs/small@2000"):
        apply_overrides(make_config(), {"evaluation.sampler.guide": str(folders / "run")})
    assert guide_of(run, EULER) is None
