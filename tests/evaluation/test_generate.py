"""Generation for evaluation: paired noise, padding that leaks nothing, an honest floor."""

import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import make_generator, other_prompts_of_task, prompt_ids
from rfjax.evaluation.geneval.judgements import prompt_scores
from rfjax.evaluation.geneval.rules import Detections, judge
from rfjax.flow.formulation import parse_formulation

SHAPE = (1, 4, 4, 2)


def apply(params, z, t, context, pooled):
    """A field that depends on everything a network may depend on."""
    return (
        params * z
        + t[:, None, None, None, None] * context.sum((1, 2))[:, None, None, None, None]
        + pooled.sum(1)[:, None, None, None, None]
    )


def generate(ids, batch_size, guidance=3.0, negative=None):
    rng = np.random.default_rng(0)
    conditions = Conditions(np.float32(rng.standard_normal((20, 3, 2))), np.float32(rng.standard_normal((20, 5))))
    sampler = SamplerConfig(method="heun", steps=3, guidance_scale=guidance)
    run = make_generator(apply, sampler, parse_formulation("rf", 2.0), SHAPE, batch_size=batch_size)
    return run(jnp.float32(0.3), 7, ids, conditions.rows(ids[:, 0]), negative)


def test_an_image_is_the_same_in_any_batch():
    ids = prompt_ids(5, 2)
    whole = generate(ids, batch_size=4)  # 10 images: the last batch is padded
    assert whole.shape == (10, *SHAPE)
    np.testing.assert_allclose(generate(ids[[7]], batch_size=3)[0], whole[7], atol=1e-6)
    assert len({image.tobytes() for image in whole}) == 10  # no noise is used twice


def test_the_default_negative_is_zeros():
    ids = prompt_ids(3, 1)
    zeros = Conditions(np.zeros((1, 3, 2), np.float32), np.zeros((1, 5), np.float32))
    np.testing.assert_array_equal(generate(ids, 3), generate(ids, 3, negative=zeros))
    ones = Conditions(np.ones((1, 3, 2), np.float32), np.ones((1, 5), np.float32))
    assert not np.allclose(generate(ids, 3), generate(ids, 3, negative=ones))


def test_ids_run_prompt_by_prompt():
    np.testing.assert_array_equal(prompt_ids(2, 3), [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])


def rows(*prompts):
    return [{"tag": tag, "prompt": prompt, "include": [{"class": prompt, "count": 1}]} for tag, prompt in prompts]


def test_the_floor_never_scores_an_image_against_its_own_prompt():
    """Prompts repeat where a task has few: a shift by a multiple of the period would hit the same text."""
    prompts = rows(*[("single_object", f"p{i % 6}") for i in range(24)], *[("colors", f"c{i % 4}") for i in range(8)])
    other = other_prompts_of_task(prompts)
    for mine, index in enumerate(other):
        assert prompts[index]["tag"] == prompts[mine]["tag"] and prompts[index]["prompt"] != prompts[mine]["prompt"]
    with pytest.raises(ConfigError, match="counting has no prompt but 'same'"):
        other_prompts_of_task(rows(("counting", "same"), ("counting", "same")))


def test_prompt_scores_group_repeated_prompts():
    prompts = rows(("single_object", "a"), ("single_object", "a"), ("single_object", "b"))
    seen = Detections.from_lists({"a": [[0, 0, 1, 1, 0.9]]})
    judged = [judge(seen, row) for row in prompts]
    assert prompt_scores(judged) == [["single_object", 2, 2], ["single_object", 0, 1]]
