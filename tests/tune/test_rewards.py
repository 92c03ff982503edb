"""Rewards and prompts: what is judged, what is refused, and which prompts are learnt from."""

import numpy as np
import pytest

from helpers import tuned_runs
from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.geneval import rules
from rfjax.tune import prompts
from rfjax.tune.config import BUILT_IN_REWARDS, TuneConfig, from_dict
from rfjax.tune.rewards import REWARDS, Reward, graded, make_reward


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DataConfig(corpus="shapes"), 0)


@pytest.fixture(scope="module")
def judged(corpus):
    """Ground truth of prompts judged by themselves and by prompts of their task that ask for something else."""
    rows = corpus.evaluation_prompts(6, 3)
    images = np.stack([corpus.render_prompt(row, seed) for seed in range(2) for row in rows])
    return images, rows * 2, [rows[index - index % 6 + (index + 1) % 6] for index in range(len(rows))] * 2


def test_the_graded_reward_is_one_exactly_where_geneval_is(corpus, judged):
    """Catches a demand that is not asked, and one that is asked twice in another way than GenEval asks it."""
    images, own, others = judged
    whole, part = make_reward("geneval", corpus), make_reward("geneval_graded", corpus)
    np.testing.assert_array_equal(whole(images, own), 1.0)
    np.testing.assert_array_equal(part(images, own), 1.0)
    wrong, grades = whole(images, others), part(images, others)
    np.testing.assert_array_equal(wrong == 1.0, grades == 1.0)
    assert wrong.mean() + 0.05 < grades.mean() < 0.9


def test_grades_are_shares_of_a_prompts_demands():
    row = {"tag": "counting", "include": [{"class": "ring", "count": 4}], "exclude": [{"class": "ring", "count": 5}]}

    def boxes(count):
        return rules.Detections.from_lists({"ring": [[i, 0, i + 1, 1, 0.95] for i in range(count)]})

    assert [graded(boxes(count), row) for count in (0, 2, 4, 6)] == [0.5, 0.75, 1.0, 0.5]
    row = {
        "tag": "position",
        "include": [{"class": "ring", "count": 1}, {"class": "bar", "count": 1, "position": ["right of", 0]}],
    }
    left, right = [[0, 0, 2, 2, 0.9]], [[10, 0, 12, 2, 0.9]]
    assert graded(rules.Detections.from_lists({"ring": left, "bar": right}), row) == 1.0
    assert graded(rules.Detections.from_lists({"ring": right, "bar": left}), row) == pytest.approx(2 / 3)
    assert graded(rules.Detections.from_lists({"bar": right}), row) == pytest.approx(1 / 3)


def test_cleanness_sees_smears_that_need_not_move_a_detector(corpus, judged):
    clean = make_reward("cleanness", corpus)
    images, rows, _ = judged
    rng = np.random.default_rng(0)
    smeared = np.clip(images + 0.3 * rng.standard_normal(images.shape), 0, 1)
    assert clean(images, rows).min() > 0.97
    assert clean(smeared, rows).max() < 0.7


@pytest.mark.parametrize(
    "name, values, said",
    [
        ("geneval", None, None),
        ("reward.py:nan", [0.0, np.nan], "'two' is nan, which is not finite"),
        ("reward.py:shape", [0.0], r"shape \(1,\) for 2 images"),
        ("reward.py:raises", None, "failed: ValueError: nothing here"),
    ],
)
def test_values_that_are_no_rewards_are_named(tmp_path, corpus, name, values, said):
    rows = [{"prompt": "one", "tag": "colors"}, {"prompt": "two", "tag": "colors"}]
    images = np.zeros((2, 16, 16, 3), np.float32)
    if name == "geneval":
        assert make_reward(name, corpus)(images, [{**row, "include": []} for row in rows]).tolist() == [1.0, 1.0]
        return
    body = "raise ValueError('nothing here')" if values is None else f"return {values!r}".replace("nan", "float('nan')")
    function = name.split(":")[1]
    (tmp_path / "reward.py").write_text(f"def {function}(images, prompts):\n    {body}\n")
    with pytest.raises(RfjaxError, match=f"reward .*{said}"):
        make_reward(f"{tmp_path}/{name}", corpus)(images, rows)


@pytest.mark.parametrize("value", [1.5, -0.1, np.inf, -np.inf, np.nan])
def test_values_outside_their_range_are_named(tmp_path, corpus, monkeypatch, value):
    """Of a row of the table, and of a user's file with a RANGE: both name the prompt, the value and the range."""
    rows = [{"prompt": "one", "tag": "colors"}, {"prompt": "two", "tag": "colors"}]
    images, said = np.zeros((2, 16, 16, 3), np.float32), f"an image of 'two' is {value:g}, which is "
    said += r"outside \[0, 1\]; mend the reward" if np.isfinite(value) else "not finite; mend the reward"
    monkeypatch.setitem(REWARDS, "geneval", Reward("", lambda corpus: lambda images, rows: np.array([1.0, value])))
    with pytest.raises(RfjaxError, match=f"the reward geneval of {said}"):
        make_reward("geneval", corpus)(images, rows)
    text = "from numpy import inf, nan\nRANGE = (0, 1)\ndef own(images, prompts):\n    return "
    (tmp_path / "own.py").write_text(f"{text}[1.0, {value}]\n")
    with pytest.raises(RfjaxError, match=f"own.py:own of {said}"):
        make_reward(f"{tmp_path}/own.py:own", corpus)(images, rows)


@pytest.mark.parametrize("given", ["(1, 0)", "1", "('a', 2)", "(0, 1, 2)", "(0, float('nan'))"])
def test_a_range_that_is_none_is_refused(tmp_path, corpus, given):
    (tmp_path / "own.py").write_text(f"RANGE = {given}\ndef own(images, prompts):\n    return [0.0]\n")
    with pytest.raises(ConfigError, match="RANGE in .*own.py is .*; it must be two numbers, the lower first"):
        make_reward(f"{tmp_path}/own.py:own", corpus)


def test_rewards_that_are_not_there_are_refused(tmp_path, corpus):
    (tmp_path / "reward.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text("x = (\n")
    (tmp_path / "two.py").write_text("def g(images, prompts): ...\n")
    for name, said in (
        ("gone.py:f", "^config.held_out_reward is .*no file"),
        ("reward.py:f", r"^config.held_out_reward is .*no function 'f' \(it defines none\)"),
        ("two.py:", r"^config.held_out_reward is .*names no function \(it defines g\); give FILE.py:FUNCTION"),
        ("wrong.py:f", "failed: SyntaxError"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_reward(f"{tmp_path}/{name}", corpus, "held_out_reward")
    with pytest.raises(ConfigError, match="config.reward is .*reward cleanness is for corpora of drawn scenes.*random"):
        make_reward("cleanness", load_corpus(DataConfig(corpus="random"), 0))


def test_the_config_knows_the_rewards_of_the_table():
    assert set(BUILT_IN_REWARDS) == set(REWARDS)


def test_no_prompt_is_both_learnt_from_and_held_out(corpus):
    """Catches a prompt that repeats in both lists, a task without either, and a pair that pretraining never showed."""
    everything = prompts.all_prompts(corpus)
    tuned, held_out = prompts.split(everything, 0.25)
    assert len(everything["color_attr"]) == 900 and len(everything["single_object"]) == 6
    for task, rows in everything.items():
        names = [{row["prompt"] for row in each[task]} for each in (tuned, held_out)]
        assert names[0] and names[1] and not names[0] & names[1]
        seen = {row["prompt"] for row in rows if not row["held_out"]}
        assert names[0] | names[1] == seen
        assert len(names[1]) == -(-len(seen) // 4)
    watched = prompts.to_watch(everything, held_out, 5)
    assert {row["prompt"] for row in watched["held_out"]} <= {r["prompt"] for rows in held_out.values() for r in rows}
    assert {row["tag"] for row in watched["held_out_pairs"]} == {"colors", "color_attr"}
    with pytest.raises(ConfigError, match="leaves no prompt of the task single_object"):
        prompts.split(everything, 0.9)


def test_rounds_take_tasks_in_turn_and_all_prompts_of_each(corpus):
    tuned, _ = prompts.split(prompts.all_prompts(corpus), 0.25)
    tune = from_dict({"rollout": {"prompts": 9}})
    rounds = [prompts.of_round(tuned, tune, number) for number in range(8)]
    rows = [row for each in rounds for row in each]
    assert [row["tag"] for row in rows[:7]] == [*tuned, next(iter(tuned))]
    single = [row["prompt"] for row in rows if row["tag"] == "single_object"]
    count = len(tuned["single_object"])
    assert len(set(single[:count])) == count and sorted(single[:count]) == sorted(single[count : 2 * count])
    assert rounds[3] == prompts.of_round(tuned, tune, 3)
    other = prompts.of_round(tuned, from_dict({"seed": 1, "rollout": {"prompts": 9}}), 3)
    assert rounds[3] != other


def test_a_corpus_without_prompts_is_refused():
    with pytest.raises(ConfigError, match="the corpus random has no prompts"):
        prompts.all_prompts(load_corpus(DataConfig(corpus="random"), 0))


def test_defaults_are_checked(tmp_path):
    assert from_dict({}) == TuneConfig()
    tuned_runs.tuning(tmp_path)
