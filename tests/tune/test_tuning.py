"""A tuning from its first step to its end: what the first step sees, exact resuming, what checkpoints hold, and how a
tuned run is read."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tuned_runs
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError, Preempted, RfjaxError
from rfjax.evaluation.records import read_records
from rfjax.inputs.json_files import read_json
from rfjax.models import lora
from rfjax.models.sharding import path_name
from rfjax.results import run_files
from rfjax.training import adapted, checkpoint, lineage
from rfjax.training.run import make_run, open_run
from rfjax.tune import held_out, learning, rollouts, watch
from rfjax.tune.config import run_config
from rfjax.tune.method import Groups, take
from rfjax.tune.methods import METHODS
from rfjax.tune.run import tune_run


def assert_equal_trees(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path_name(path))


def groups_of(run, prompts=4, images=2):
    """Random images of as many prompts with unequal rewards."""
    rng = np.random.default_rng(0)
    shapes = run.corpus.shapes
    latents = rng.standard_normal((prompts, images, *shapes.latents)).astype(np.float32)
    ids = np.indices((prompts, images)).transpose(1, 2, 0).astype(np.int32)
    text = Conditions(
        rng.standard_normal((prompts, *shapes.context)).astype(np.float32),
        rng.standard_normal((prompts, shapes.pooled)).astype(np.float32),
    )
    states = rng.standard_normal((prompts, images, run.config.evaluation.sampler.steps + 1, *shapes.latents)).astype(
        np.float32
    )
    return Groups(latents, ids, text, rng.uniform(size=(prompts, images)), states)


@pytest.mark.parametrize("method, start", [("dpo", math.log(2)), ("nft", None), ("grpo", None)])
def test_at_the_first_step_policy_and_reference_are_one(tmp_path, base, method, start):
    """Catches unlike t or noise for policy and reference, a reference of other weights, and an adapter that already
    changes the network: DPO's loss is ln 2, A has no gradient, and B has one."""
    folder, _ = base
    tune = tuned_runs.tuning(tmp_path, method=method, **{"dpo.beta": 1000.0})
    run = make_run(run_config(open_run(folder).config, tune), tmp_path / "tuned", role="tuned")
    params, _ = checkpoint.restore_params(folder, 7, "ema")
    adapter = lora.init_adapter(jax.random.key(0), params, tune.lora.rank)
    examples = take(METHODS[method].examples(groups_of(run), tune), np.arange(4))
    loss_fn = learning.make_loss(run, tune)

    def loss(adapter, params, batch):
        places = jnp.arange(len(batch.latents))
        value, aux = loss_fn(adapter, params, adapter, batch, jnp.int32(0), places)
        return value, aux.measures

    (value, measures), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter, params, examples)
    if start is not None:
        assert abs(float(value) - start) <= 1e-8 * tune.dpo.beta + 1e-6
        np.testing.assert_allclose(measures["winner_error"], measures["winner_error_reference"], rtol=1e-6)
    if method == "grpo":
        assert float(jnp.abs(measures["ratio_change"]).max()) <= 1e-5
        assert float(measures["kl"].max()) < 1e-12
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert bool(jnp.any(leaf)) == (path[-1].key == "b"), path_name(path)


class StopsAfter:
    """Told to stop when it has been asked so many times."""

    def __init__(self, polls):
        self.left = polls

    def __call__(self):
        self.left -= 1
        return self.left < 0


def curve(folder):
    timed = {"train_seconds", "steps_per_second", "images_per_second", "flops_per_second", "mfu"}
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def state_of(folder, step):
    shapes = checkpoint.stored_shapes(folder, step)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
    return checkpoint.restore_step(folder, step, wanted)[0]


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """A whole tuning by DPO, read only: (its folder, its config)."""
    root = tmp_path_factory.mktemp("tuned")
    tune = tuned_runs.tuning(root)
    tune_run(f"{base[0]}@7", root / "dpo", tune)
    return root / "dpo", tune


def test_a_tuning_that_is_stopped_within_a_round_ends_with_the_same_bits(base, tuned, tmp_path, capsys):
    """Catches images of a round that are made again by another policy or from other noise, a lost moment or average,
    and rows that are doubled or lost. The third step lies in the middle of a round. Catches a reward's file that
    changes without a word, too: a comment is added to it."""
    folder, tune = tuned
    with pytest.raises(Preempted, match="told to stop at step 3 of 5"):
        tune_run(f"{base[0]}@7", tmp_path / "dpo", tune, evaluate=False, stop=StopsAfter(3))
    hashes = read_json(tmp_path / "dpo" / "run.json", dict)["reward_files"][tune.reward]
    assert len(hashes) == 1 and "has changed" not in capsys.readouterr().out
    reward = Path(tune.reward.rpartition(":")[0])
    reward.write_text(reward.read_text() + "# mended\n")
    tune_run(f"{base[0]}@7", tmp_path / "dpo", tune, evaluate=False)
    assert "config.reward" in (said := capsys.readouterr().out) and "before step 3 were rated by the file as" in said
    again = read_json(tmp_path / "dpo" / "run.json", dict)["reward_files"][tune.reward]
    assert again[:1] == hashes and len(set(again)) == 2
    assert_equal_trees(state_of(tmp_path / "dpo", 5), state_of(folder, 5))
    assert curve(tmp_path / "dpo") == curve(folder)
    assert held_out.read(tmp_path / "dpo") == held_out.read(folder)


@pytest.mark.full
@pytest.mark.parametrize("method", ["nft", "grpo"])
def test_other_methods_resume_exactly_too(base, tmp_path, method):
    """NFT's sampling policy keeps a share of its adapter, so it is neither the base nor the policy. GRPO's images have
    paths, which are made again, and whose steps have the same probability as when they were made."""
    tune = tuned_runs.tuning(tmp_path, method=method, **{"nft.keep_growth": 0.25, "watch.every": 0})
    tune_run(str(base[0]), tmp_path / "whole", tune, evaluate=False)
    with pytest.raises(Preempted):
        tune_run(str(base[0]), tmp_path / "halted", tune, evaluate=False, stop=StopsAfter(3))
    tune_run(str(base[0]), tmp_path / "halted", tune, evaluate=False)
    whole = state_of(tmp_path / "whole", 5)
    assert_equal_trees(whole, state_of(tmp_path / "halted", 5))
    if method == "grpo":
        first, second = (row["measures"]["ratio_change"] for row in curve(tmp_path / "whole")[:2])
        assert first == 0.0 < second
        return
    flat = [
        np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(whole[name])]) for name in ("sampler", "params")
    ]
    assert np.abs(flat[0]).sum() > 0 and np.any(flat[0] != flat[1])


def test_checkpoints_hold_the_adapter_alone_and_runs_are_read_whole(base, tuned):
    """Catches whole weights in a checkpoint, raw weights for the average, the wrong base, and a scale that is lost
    between tuning and reading."""
    folder, tune = tuned
    state = state_of(folder, 5)
    weights = state_of(base[0], 7)["ema"]
    adapter = jax.eval_shape(lambda: lora.init_adapter(jax.random.key(0), weights, 4))
    assert jax.tree.structure(state["params"]) == jax.tree.structure(adapter)
    assert set(state) == {"step", "params", "ema", "opt_state", "skipped", "skipped_in_row", "sampler"}
    opened = open_run(folder)
    for weights, key in (("ema", "ema"), ("raw", "params")):
        want = lora.merge(state_of(base[0], 7)["ema"], state[key], tune.scale)
        got = opened.restore_params(5, weights)
        arrays = dict(adapted.read_arrays(folder, 5, key))
        for path, leaf in jax.tree_util.tree_leaves_with_path(want):
            size = float(jnp.abs(leaf).max())
            other = jax.tree_util.tree_leaves_with_path(got)
            np.testing.assert_allclose(dict(other)[path], leaf, rtol=0, atol=1e-6 * size)
            np.testing.assert_allclose(arrays[f"{key}/{path_name(path)}"], leaf, rtol=0, atol=1e-6 * size)


def test_a_tuned_run_is_evaluated_and_named_as_one(base, tuned):
    """Catches a tuned run among the points of a law of pretraining, and evaluations of the base's weights."""
    folder, _ = tuned
    found = run_files.read_run(folder)
    assert found.facts["role"] == "tuned" and found.facts["parent_run"] == base[1].name
    losses = {record["key"]["weights"]: record["values"][0]["value"] for record in read_records(folder)}
    assert losses.keys() == {"ema", "raw"} and losses["ema"] != losses["raw"]
    record = json.loads((folder / "run.json").read_text())
    count = sum(leaf.size for leaf in jax.tree.leaves(state_of(folder, 5)["params"]))
    assert record["adapter_params"] == count < record["params"]
    assert record["images"] == 28 + 5 * 4  # the base's, and an example of each place


def test_prompts_that_are_not_learnt_from_are_measured_beside(tuned):
    folder, tune = tuned
    rows = held_out.read(folder)
    assert sorted({row["step"] for row in rows}) == [0, 2, 4, 5]
    assert {row["measure"] for row in rows} == {tune.reward, "geneval_graded", "diversity"}
    assert {row["prompts"] for row in rows} == {"held_out", "held_out_pairs"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    table = "\n".join(held_out.table(rows, 5))
    assert "before" in table and "diversity" in table and " - " not in table


def test_curves_have_the_errors_of_policy_and_reference_apart(tuned):
    rows = curve(tuned[0])
    assert len(rows) == 5
    first = rows[0]["measures"]
    assert first["winner_error"] == pytest.approx(first["winner_error_reference"], rel=1e-5)
    assert first["loser_error"] != pytest.approx(first["winner_error"], rel=1e-4)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_what_cannot_go_on_or_begin_is_refused_by_name(base, tuned, tmp_path):
    folder, tune = tuned
    other = tuned_runs.tuning(tmp_path, **{"dpo.beta": 7.0})
    with pytest.raises(ConfigError, match="holds another tuning; it differs in config.dpo.beta, config.reward"):
        tune_run(str(base[0]), folder, other)
    with pytest.raises(ConfigError, match="is a tuned run, whose checkpoints hold an adapter alone"):
        tune_run(str(folder), tmp_path / "again", tune)
    with pytest.raises(ConfigError, match="holds a run that was not tuned"):
        tune_run(str(base[0]), base[0], tune)
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        tune_run(f"{base[0]}@3", tmp_path / "again", tune)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigError, match="is a tuned run"):
        lineage.read_parent(str(folder))


def test_a_base_that_is_gone_or_changed_is_named(base, tmp_path):
    """Catches an adapter that is merged with other weights than those that were tuned."""
    home = tmp_path / "base"
    run = tuned_runs.write_base(home)
    params, _ = checkpoint.restore_params(home, 7, "ema")
    tuned_runs.write_tuned(tmp_path / "tuned", home, 7, params)
    adapted.restore_params(tmp_path / "tuned", 5, "ema")
    home.rename(tmp_path / "moved")
    with pytest.raises(RfjaxError, match="holds an adapter of step 7 of .*base, and that checkpoint is missing"):
        adapted.restore_params(tmp_path / "tuned", 5, "ema")
    tuned_runs.write_base(home, seed=5)
    with pytest.raises(RfjaxError, match="has other weights now"):
        adapted.restore_params(tmp_path / "tuned", 5, "ema")
    assert run.role == "run"


@pytest.mark.parametrize(
    "function, said",
    [("nothing", r"is 0.5 for every image of 4 rounds of 12 images"), ("broken", "is nan, which is not finite")],
)
def test_a_reward_that_tells_nothing_ends_the_tuning_by_name(base, tmp_path, function, said):
    tune = tuned_runs.tuning(tmp_path, **{"watch.every": 0})
    tune = type(tune)(**{**vars(tune), "reward": tune.reward.replace("brightness", function)})
    with pytest.raises(RfjaxError, match=f"reward .*:{function} .*{said}"):
        tune_run(str(base[0]), tmp_path / "tuned", tune, evaluate=False)


def row_of(rise, square, step=10):
    measures = {"winner_error": 0.31, "winner_error_reference": 0.3, "winner_rise": rise, "winner_rise_square": square}
    return {"step": step, "measures": measures}


def test_the_alarm_is_for_winners_that_get_worse_and_not_for_chance(tmp_path):
    tune = tuned_runs.tuning(tmp_path, log_every=10)
    said = list(learning.alarms(tune, row_of(0.01, 0.0002)))
    assert len(said) == 1 and "from 0.3 to 0.31" in said[0] and "step 10" in said[0]
    assert not list(learning.alarms(tune, row_of(-0.01, 0.0002)))
    assert not list(learning.alarms(tune, row_of(0.01, 0.01)))  # within three standard errors of 40 pairs
    assert not list(learning.alarms(tune, {"step": 10, "measures": {}}))


def test_a_step_takes_every_example_of_a_round_before_any_again(tmp_path):
    tune = tuned_runs.tuning(tmp_path)
    rows = np.concatenate([rollouts.rows_of_step(tune, 6, 1, place) for place in range(3)])
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))
    assert rows[:6].tolist() != rollouts.rows_of_step(tune, 6, 2, 0).tolist() + [0, 0]


def test_diversity_and_the_mean_over_tasks():
    images = np.zeros((2, 3, 1, 1, 3))
    images[1, 0] = 0.3
    np.testing.assert_allclose(watch.diversity(images), [0.0, 0.2])
    value, low, high = held_out.task_mean({"a": [0.0, 1.0], "b": [0.5]})
    assert value == 0.5 and low == 0.25 and high == 0.75


def test_the_change_is_paired_by_prompt():
    """Catches two intervals that are subtracted: every prompt gains 0.1, so the change has no width, whatever the
    spread between prompts. A task of one prompt weighs as much as one of two."""
    about = {"prompts": "held_out", "guidance_scale": 1.0, "measure": "m", "images": 3}

    def row(step, by_task):
        return {"step": step, **about, **dict(zip(("value", "low", "high"), held_out.task_mean(by_task), strict=True))}

    before = row(0, first := {"a": [0.0, 0.8], "b": [0.5]}) | {"by_task": first}
    after = row(9, last := {"a": [0.1, 0.9], "b": [0.6]}) | {"by_task": last}
    np.testing.assert_allclose(held_out.change(before, after), [0.1] * 3)
    assert held_out.table([before, after], 9)[1].endswith(" +0.100 [+0.100, +0.100]")
    other = {**after, "by_task": {"a": [0.1], "b": [0.6]}}
    assert held_out.change(before, other) is None is held_out.change(before, row(9, last))
    assert held_out.table([before, row(9, last)], 9)[1].endswith(" -")
    np.testing.assert_allclose(held_out.change(before, {**after, "by_task": {**last, "b": [1.0]}})[0], 0.3)
