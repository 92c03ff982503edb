import json

import jax
import numpy as np
import pytest

from helpers.training_tiny import rows, tiny_train
from rfjax.errors import ConfigError, Preempted
from rfjax.training import checkpoint, lineage, run_folder
from rfjax.training.run import plan_run

QK_NORM = {"model.qk_norm": True}
SHORT = {"train.steps": 4, "train.checkpoint_every": 4}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lineage") / "parent"
    tiny_train(workdir, {"train.steps": 12})
    return workdir


def test_run_at_step_is_read(parent):
    assert lineage.parse_origin(f"{parent}@6") == (parent, 6)
    assert lineage.parse_origin(str(parent)) == (parent, 12)
    with pytest.raises(ConfigError, match="no checkpoint of step 7; .* has 6, 12"):
        lineage.parse_origin(f"{parent}@7")
    with pytest.raises(ConfigError, match="'last' is no step; write RUN@STEP"):
        lineage.parse_origin(f"{parent}@last")
    with pytest.raises(ConfigError, match="no checkpoint in"):
        lineage.parse_origin("nowhere@3")


def test_a_child_starts_with_the_parents_weights_and_counts_its_cost(parent, tmp_path):
    seen = []
    child = tmp_path / "child"
    overrides = SHORT | {"train.learning_rate": 0.0}
    result = tiny_train(
        child, overrides, init_from=f"{parent}@6", on_checkpoint=lambda step, state: seen.append(jax.device_get(state))
    )
    expected, _ = checkpoint.restore_params(parent, 6, "raw")
    for got in (seen[0].params, seen[0].ema):  # its average is of its own steps, none of which changed a weight
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(expected), got)
    assert int(seen[0].step) == 4 and int(seen[0].opt_state[1].count) == 4  # a clock and an optimiser of its own
    assert result.images == (6 + 4) * 8
    record = json.loads((child / "run.json").read_text())
    each = record["flops_per_image"]
    assert record["parent"] == {"path": str(parent), "run": "parent", "step": 6, "images": 48, "flops": 48.0 * each}
    grandchild = tiny_train(tmp_path / "grandchild", SHORT, init_from=f"{child}@4")
    assert grandchild.images == (6 + 4 + 4) * 8 and grandchild.flops == (6 + 4 + 4) * 8 * each > 0


def test_a_child_goes_on_in_the_stream_of_data_and_noise(parent, tmp_path):
    """With nothing learnt, a child's losses are those its parent would have had next."""
    still = {"train.learning_rate": 0.0, "train.log_every": 1, "evaluation.every": 6}
    whole = tmp_path / "whole"
    tiny_train(whole, still | {"train.steps": 10})
    tiny_train(tmp_path / "child", still | {"train.steps": 4}, init_from=f"{whole}@6")

    def loss(workdir):
        return [row["loss"] for row in rows(workdir)]

    assert loss(tmp_path / "child") == loss(whole)[6:]


def test_a_child_resumes_without_its_parent(parent, tmp_path):
    undisturbed, stopped = tmp_path / "a", tmp_path / "b"
    overrides = {"train.steps": 8, "train.checkpoint_every": 4}
    tiny_train(undisturbed, overrides, init_from=f"{parent}@12")
    calls = iter(range(100))
    with pytest.raises(Preempted):
        tiny_train(stopped, overrides, init_from=f"{parent}@12", stop=lambda: next(calls) >= 3)
    with pytest.raises(ConfigError, match="was started from .*parent@12; use another --workdir"):
        tiny_train(stopped, overrides, init_from=f"{parent}@6")
    tiny_train(stopped, overrides)
    assert checkpoint.read_facts(stopped, 8)["checksums"] == checkpoint.read_facts(undisturbed, 8)["checksums"]


def test_a_run_without_a_parent_gets_none_later(parent, tmp_path):
    with pytest.raises(Preempted):
        tiny_train(tmp_path / "run", SHORT, stop=lambda: True)
    with pytest.raises(ConfigError, match="was not started from another"):
        tiny_train(tmp_path / "run", SHORT, init_from=f"{parent}@6")


def test_new_qk_norm_scales_are_ones_and_what_else_differs_is_named(parent, tmp_path):
    child = tmp_path / "normed"
    overrides = SHORT | QK_NORM | {"train.learning_rate": 0.0, "train.weight_decay": 0.0}
    result = tiny_train(child, overrides, init_from=f"{parent}@12")
    scale = result.state.params["blocks"]["image"]["query_norm"]["scale"]
    np.testing.assert_array_equal(scale, np.ones((2, 16)))
    expected, _ = checkpoint.restore_params(parent, 12, "raw")
    final = result.state.params["final"]["linear"]["kernel"]
    np.testing.assert_array_equal(final, expected["final"]["linear"]["kernel"])
    with pytest.raises(ConfigError, match="config.model.qk_norm is True in the parent and False in this run. Set"):
        tiny_train(tmp_path / "unnormed", SHORT, init_from=f"{child}@4")
    assert not (tmp_path / "unnormed").exists()


def test_a_parent_of_other_sizes_is_refused_by_the_keys_that_differ(parent, tmp_path):
    """Parameter paths say nothing to who gave config keys; nor do keys that shape no parameter help."""
    child = tmp_path / "deeper"
    overrides = SHORT | QK_NORM | {"model.depth": 3, "model.hidden": 24, "model.position_grid": 64}
    with pytest.raises(ConfigError) as error:
        tiny_train(child, overrides, init_from=f"{parent}@12")
    said = (
        "model: config.model.depth is 2 in the parent and 3 in this run; config.model.hidden is 16 in the parent and 24"
    )
    assert said in str(error.value)
    assert not child.exists()  # neither a lock nor a status is left behind
    config = parent / "config.json"
    kept = config.read_text()
    config.unlink()
    try:
        said = r"mlp_in/kernel is \[2, 16, 32\] in the parent and \[3, 24, 48\] in this run"
        with pytest.raises(ConfigError, match=said):
            tiny_train(child, overrides, init_from=f"{parent}@12")
    finally:
        config.write_text(kept)


def test_a_parameter_the_parent_lacks_is_named(parent):
    record = lineage.read_parent(f"{parent}@12")
    shapes = checkpoint.stored_shapes(parent, 12)
    shapes["params"]["blocks"]["image"]["extra"] = {"kernel": jax.ShapeDtypeStruct((2,), "float32")}
    with pytest.raises(ConfigError, match="the parent has no parameter blocks/image/extra/kernel"):
        lineage.inherit(record, shapes["params"], shapes["ema"], plan_run(run_folder.read_config(parent)))
