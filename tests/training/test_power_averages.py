"""Power-function averages against closed forms, and averages of other widths that are made from them after training."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.training_tiny import ended, run_in, start_processes, tiny_config, tiny_train
from rfjax import config as configs
from rfjax.config import TrainConfig
from rfjax.errors import ConfigError, RfjaxError
from rfjax.training import adapted, branches, checkpoint, run_folder, snapshots
from rfjax.training.checkpoint_facts import AVERAGES
from rfjax.training.mesh import path_name, shardings
from rfjax.training.power_averages import exponent_of, mix, name_of, snapshot_steps, update_weight
from rfjax.training.program import abstract_state
from rfjax.weight_names import parse_weights, parse_widths

WIDTHS = (0.05, 0.1)
KEEPS = {"train.power_averages": WIDTHS, "train.steps": 64, "train.ema_every": 2, "train.checkpoint_every": 12}


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(unoptimised):
    """In place of the room's: runs with and without averages are two programs, and give the same bits."""


def newest_weights(width, steps, every):
    """The weight of the newest parameters in each update of 4,000 steps at most."""
    at = jnp.arange(every, steps + 1, every)
    return np.asarray(update_weight(exponent_of(width), at, at - every), np.float64)


def weights_over_steps(new, every):
    """How much an average weighs the parameters of each update, by its recursion: (steps of the updates, weights)."""
    at = every * np.arange(1, len(new) + 1)
    kept = np.append(np.cumprod((1 - new)[::-1])[::-1][1:], 1.0)
    return at, new * kept


def test_exponents_are_the_published_ones_and_give_the_width_back():
    for width, published in {0.05: 16.9722, 0.10: 6.9372, 0.25: 0.7198}.items():
        exponent = exponent_of(width)
        assert exponent == pytest.approx(published, abs=1e-4)
        assert np.sqrt(exponent + 1) / ((exponent + 2) * np.sqrt(exponent + 3)) == pytest.approx(width, rel=1e-12)


@pytest.mark.parametrize("every", [1, 20, 100])
def test_the_width_is_right_at_every_interval_of_updates(every):
    """Catches an update by 1 - 1/t whatever the interval: at every 100 of 4,000 steps it leaves 77 % of the weight on
    the first update, and a width of 0.18."""
    steps, exponent = 4000, exponent_of(0.10)
    at, weights = weights_over_steps(newest_weights(0.10, steps, every), every)
    centre = weights @ at
    assert weights.sum() == pytest.approx(1, abs=1e-4) and weights[0] < 1e-3
    assert centre / steps == pytest.approx((exponent + 1) / (exponent + 2), abs=0.6 * every / steps + 1e-3)
    assert np.sqrt(weights @ np.square(at - centre)) / steps == pytest.approx(0.10, rel=0.01)


def test_a_stored_average_is_given_back_and_weights_sum_to_one():
    ends = [250.0 * number for number in range(1, 17) for _ in WIDTHS]
    exponents = [exponent_of(width) for _ in range(16) for width in WIDTHS]
    own = mix(ends, exponents, 4000.0, exponent_of(0.10))
    assert np.allclose(own.coefficients, np.eye(32)[31], atol=1e-6) and own.misfit < 1e-6
    for width, bound in {0.05: 1e-6, 0.08: 4e-3, 0.12: 4e-3, 0.15: 1e-2, 0.2: 3e-2}.items():
        found = mix(ends, exponents, 4000.0, exponent_of(width))
        assert found.coefficients.sum() == pytest.approx(1, abs=1e-12) and found.misfit < bound < 2 * snapshots.MISFIT
    assert all(mix(ends, exponents, 4000.0, exponent_of(width)).misfit > snapshots.MISFIT for width in (0.03, 0.25))


@pytest.mark.parametrize("every", [1, 20, 100])
def test_an_average_made_afterwards_is_the_one_that_was_not_kept(every):
    """A noisy path of 4,000 steps with three averages; the third is made from 16 snapshots of the other two. Catches
    a wrong inner product or step of the last update, and coefficients that are not divided by their sum."""
    rng, steps = np.random.default_rng(0), 4000 // every * every
    drift = np.outer(np.log1p(np.arange(steps + 1)), rng.normal(size=50)) / 8
    path = rng.normal(size=50) + drift + 0.05 * rng.normal(size=(steps + 1, 50))
    at = {round(number * steps / every / 16) * every for number in range(1, 17)}

    new = {width: newest_weights(width, steps, every) for width in (*WIDTHS, 0.12, 0.13, 0.15)}

    def average(width, end):
        updates, weights = weights_over_steps(new[width][: end // every], every)
        return weights @ path[updates]

    held = [(end, width) for end in sorted(at) for width in WIDTHS]
    kept = np.stack([average(width, end) for end, width in held])
    for width in (0.1, 0.12, 0.13, 0.15):
        ends, exponents = zip(*((float(end), exponent_of(w)) for end, w in held), strict=True)
        mixture = mix(ends, exponents, float(steps), exponent_of(width))
        wanted = average(width, steps)
        error = np.linalg.norm(mixture.coefficients @ kept - wanted) / np.linalg.norm(wanted)
        assert error < 2e-4, (width, error)


def test_snapshots_are_at_updates_and_evenly_spread():
    config = TrainConfig(steps=1000, ema_every=7, power_averages=WIDTHS)
    steps = sorted(snapshot_steps(config))
    assert len(steps) == 16 and steps[-1] == 994 and all(step % 7 == 0 for step in steps)
    assert np.ptp(np.diff(steps)) <= 7
    assert snapshot_steps(TrainConfig(steps=1000)) == frozenset()
    assert len(snapshot_steps(TrainConfig(steps=20, ema_every=2, power_averages=WIDTHS))) == 10
    many = TrainConfig(steps=40, ema_every=2, power_averages=WIDTHS, average_snapshots=10**9)
    assert snapshot_steps(many) == frozenset(range(2, 41, 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("averages")
    tiny_train(root / "run", KEEPS)
    return root


def sums(workdir, step=64):
    return checkpoint.read_facts(workdir, step)["checksums"]


def test_a_run_that_keeps_them_has_the_bits_of_one_that_does_not(trained):
    plain = {name: value for name, value in KEEPS.items() if name != "train.power_averages"}
    tiny_train(trained / "plain", plain)
    found, expected = sums(trained / "run"), sums(trained / "plain")
    assert {name: found[name] for name in expected} == expected
    assert {name.split("/")[0] for name in found.keys() - expected.keys()} == {"power", "power_step"}
    assert checkpoint.steps_saved(trained / "run" / AVERAGES) == list(range(4, 65, 4))
    assert not (trained / "plain" / AVERAGES).exists()


def test_a_run_that_is_stopped_ends_with_the_same_averages_and_snapshots(trained, tmp_path):
    """Stopped after a snapshot whose checkpoint is gone, and between snapshots. Catches averages that start again, and
    snapshots that are lost or made of another step."""
    for at in (13, 37):
        calls = iter(range(1000))
        with pytest.raises(Exception, match="told to stop"):
            tiny_train(tmp_path / "run", KEEPS, stop=lambda calls=calls, at=at: next(calls) >= at)
        if at == 13:
            newest = checkpoint.steps_saved(tmp_path / "run")[-1]
            checkpoint.drop(tmp_path / "run", newest)
    tiny_train(tmp_path / "run", KEEPS)
    assert sums(tmp_path / "run") == sums(trained / "run")
    for step in range(4, 65, 4):
        folders = (where / "run" / AVERAGES for where in (tmp_path, trained))
        assert len({str(sums(folder, step)) for folder in folders}) == 1


def test_averages_are_made_from_a_finished_run(trained, tmp_path):
    """Against a run that keeps the wanted width itself. Catches snapshots of another step or width."""
    run = run_in(trained / "run", tiny_config(KEEPS))
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    own = run.restore_params(64, "power-0.1")
    stored, _ = checkpoint.restore_step(trained / "run", 64, abstract_state(run)._asdict())
    assert np.allclose(flat(own), flat(stored["power"][name_of(0.1)]), atol=1e-6)
    tiny_train(tmp_path / "third", KEEPS | {"train.power_averages": (0.13,)})
    third = run_in(tmp_path / "third", tiny_config(KEEPS | {"train.power_averages": (0.13,)}))
    wanted, found = flat(third.restore_params(64, "power-0.13")), flat(run.restore_params(64, "power-0.13"))
    raw = flat(run.restore_params(64, "raw"))
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(raw - wanted)
    assert np.linalg.norm(found - wanted) < 2e-4 * np.linalg.norm(wanted)
    with pytest.raises(ConfigError, match=r"power-0.02 cannot be made at step 64 .* 16 stored averages of widths 0.05"):
        run.restore_params(64, "power-0.02")
    plain = run_in(tmp_path / "plain", tiny_config({"train.steps": 6}))
    tiny_train(tmp_path / "plain", {"train.steps": 6})
    with pytest.raises(ConfigError, match="keeps no power-function averages, of which others are made; train it with"):
        plain.restore_params(6, "power-0.1")


def test_a_branch_takes_the_trunks_averages_and_snapshots_along(trained, tmp_path):
    """The branch is the whole run; catches averages that start anew at the departure, and snapshots of the trunk's that
    are left out or lie after it."""
    schedule = {"train.schedule": "wsd", "train.decay_fraction": 0.25}
    tiny_train(tmp_path / "whole", KEEPS | schedule)
    tiny_train(tmp_path / "trunk", KEEPS | {"train.schedule": "constant", "train.steps": 56}, keep_steps=(48,))
    trunk = [str(tmp_path / "trunk"), "trunk", 48]
    tiny_train(tmp_path / "branch", KEEPS | schedule, trunk=trunk)
    assert sums(tmp_path / "branch") == sums(tmp_path / "whole")
    branch, whole = (run_in(tmp_path / name, tiny_config(KEEPS | schedule)) for name in ("branch", "whole"))
    found, lacking = snapshots.held_by(tmp_path / "branch", 64)
    held = {each.updated for each in found}
    assert not lacking
    assert held >= {52, 56, 60, 64} and len(held & set(range(1, 49))) >= 12
    both = [jax.tree.leaves(run.restore_params(64, "power-0.12")) for run in (branch, whole)]
    for one, other in zip(*both, strict=True):
        assert np.allclose(one, other, atol=2e-4)


def test_snapshots_of_other_runs_are_refused_and_missing_ones_said(trained, tmp_path):
    """Catches averages of another seed that are mixed in without a word."""
    other = KEEPS | {"seed": 7}
    tiny_train(tmp_path / "other", other)
    shutil.copytree(trained / "run", tmp_path / "run")
    inside = "averages/checkpoints/40"
    shutil.rmtree(tmp_path / "run" / inside)
    run = run_in(tmp_path / "run", tiny_config(KEEPS))
    run.restore_params(64, "power-0.12")  # one of 16 is missing: made from the others
    with pytest.raises(ConfigError, match=r"\(1 snapshots are missing in .*averages\)"):
        run.restore_params(64, "power-0.25")
    shutil.copytree(tmp_path / "other" / inside, tmp_path / "run" / inside)
    with pytest.raises(RfjaxError, match="that of another run: seed"):
        run.restore_params(64, "power-0.12")


def test_the_trunk_is_the_run_that_the_branch_left(tmp_path):
    """Catches another run with the folder's name beside the branch, whose averages are mixed in: under another name,
    with other settings or another warm-up; and a study that was moved, whose trunk is beside the branch alone."""
    record = {
        "run": "run",
        "flops_per_image": 1.0,
        "corpus_fingerprint": "f",
        "parent": None,
        "starts": [],
        "params": 5,
    }

    def planted(place, config=None, **facts):
        place.mkdir(parents=True)
        run_folder.write_json(place / "run.json", record | facts)
        run_folder.write_json(place / "config.json", configs.to_dict(tiny_config(KEEPS | (config or {}))))
        return place

    def found(branch, path):
        return snapshots._trunk_of(branch, record, {"path": str(path), "run": "run", "step": 48})

    own, branch = planted(tmp_path / "study" / "run"), planted(tmp_path / "elsewhere" / "branch")
    beside = planted(branch.parent / "run")
    assert found(branch, own) == own and found(branch, tmp_path / "gone" / "run") == beside
    others = ({"seed": 7}, {"train.b2": 0.9}, {"train.warmup_steps": 8})
    for number, config in enumerate(others):
        other = planted(tmp_path / str(number) / "run", config)
        assert found(planted(other.parent / "branch"), tmp_path / "gone" / "run") is None
        assert found(branch, other) == beside
    shorter = {"train.steps": 56, "train.checkpoint_every": 5}  # nothing that its first 48 steps depend on
    assert found(branch, planted(tmp_path / "shorter" / "run", shorter)) == tmp_path / "shorter" / "run"
    for number, facts in enumerate(({"run": "study/run"}, {"corpus_fingerprint": "x"}, {"params": 1})):
        assert found(branch, planted(tmp_path / f"facts{number}" / "run", **facts)) == beside


def test_a_step_with_too_few_updates_has_no_average(trained, monkeypatch):
    """Catches a width that is recorded as 0.05 and is 0.039, of the first steps of a run."""
    monkeypatch.setattr(snapshots, "_places", lambda workdir, step: ([(str(workdir / AVERAGES), step)], []))
    with pytest.raises(ConfigError, match="by step 39 the averages of .*run had 19 updates, .* at least 40"):
        snapshots.check_widths(trained / "run", 39, [0.05])
    held, _ = snapshots.held_by(trained / "run", 40)
    assert {each.updated for each in held} == {40}


def test_a_run_goes_on_where_snapshots_were_removed(trained, tmp_path):
    """Catches a snapshot that cannot be saved below a later one, for ever; and later ones of a path that is left."""
    shutil.copytree(trained / "run", tmp_path / "run")
    for step in checkpoint.steps_saved(tmp_path / "run"):
        if step > 48:
            checkpoint.drop(tmp_path / "run", step)
    shutil.rmtree(tmp_path / "run" / AVERAGES / "checkpoints" / "52")
    run_folder.write_status(tmp_path / "run", "stopped", 48)
    tiny_train(tmp_path / "run", KEEPS)
    assert checkpoint.steps_saved(tmp_path / "run" / AVERAGES) == list(range(4, 65, 4))
    assert sums(tmp_path / "run") == sums(trained / "run")


@pytest.mark.full
def test_two_processes_keep_the_averages_of_one(trained, tmp_path):
    """Stopped and resumed. Catches snapshots at whose end the processes wait for each other at two barriers."""
    workdir = tmp_path / "two"
    ends = ended(start_processes(workdir, 2, overrides=KEEPS))
    assert [status for status, _ in ends] == [0, 0], ends
    assert checkpoint.steps_saved(workdir / AVERAGES) == list(range(4, 65, 4))
    two, one = run_in(workdir, tiny_config(KEEPS)), run_in(trained / "run", tiny_config(KEEPS))
    both = [jax.tree.leaves(run.restore_params(64, "power-0.12")) for run in (two, one)]
    assert all(np.allclose(first, second, atol=1e-4) for first, second in zip(*both, strict=True))


def test_too_few_updates_are_refused():
    with pytest.raises(ConfigError, match="with fewer than 20 updates an average does not have its width"):
        tiny_config(KEEPS | {"train.ema_every": 4})
    branched = KEEPS | {"train.schedule": "wsd", "train.branches": (38, 64), "train.decay_fraction": 0.2}
    with pytest.raises(ConfigError, match=r"config.train.branches is \(38, 64\) .* shortest branch need 20 updates"):
        tiny_config(branched)
    with pytest.raises(ConfigError, match="the last departure .* is 38 .* the trunk, which ends at .* need 20 updates"):
        tiny_config(branched | {"train.branches": (48,), "train.steps": 48})
    config = tiny_config(branched | {"train.branches": (40, 64)})
    for each in (branches.trunk_of(config), branches.branch_of(config, 40)):  # as config.json is read again
        assert configs.from_dict(configs.to_dict(each)) == each


def test_runs_trained_together_keep_the_averages_of_runs_alone(tmp_path):
    from rfjax.training.cohort import train_cohort

    rates = (1e-2, 3e-3)
    more = {"train.together": 2, "evaluation.every": 0}
    made = [
        run_in(tmp_path / f"m{n}", tiny_config(KEEPS | more | {"train.learning_rate": r})) for n, r in enumerate(rates)
    ]
    assert train_cohort(made, on_checkpoint=lambda *_: None, stop=lambda: False) == {}
    tiny_train(tmp_path / "alone", KEEPS | {"train.learning_rate": rates[1]})
    alone = run_in(tmp_path / "alone", tiny_config(KEEPS | {"train.learning_rate": rates[1]}))
    for width in ("power-0.05", "power-0.12"):
        both = [jax.tree.leaves(run.restore_params(64, width)) for run in (made[1], alone)]
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(*both, strict=True))


def test_averages_are_split_as_the_parameters_are(tmp_path):
    run = run_in(tmp_path, tiny_config(KEEPS | {"mesh.data": 1, "mesh.fsdp": -1}))
    state = abstract_state(run)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    for name in map(name_of, WIDTHS):
        assert places.power[name] == places.params == shardings(run.mesh, state.params)


def test_a_made_average_is_exported_by_its_name(trained):
    """Catches an export of the ordinary average under another's name, and arrays under other paths."""
    run = run_in(trained / "run", tiny_config(KEEPS))
    made = dict(adapted.read_weights(trained / "run", 64, "power-0.12"))
    wanted = jax.tree_util.tree_leaves_with_path(run.restore_params(64, "power-0.12"))
    assert list(made) == [path_name(path) for path, _ in wanted]
    assert list(made) == [name for name, _ in adapted.read_weights(trained / "run", 64, "raw")]
    assert all(np.array_equal(made[path_name(path)], leaf) for path, leaf in wanted)
    assert parse_weights("power-.120") == "power-0.12" and parse_weights("raw") == "raw"
    for text in ("power-0.3", "power-x", "power-", "median"):
        with pytest.raises(ConfigError, match="must be ema, raw, or the power-function average"):
            parse_weights(text)


@pytest.mark.parametrize("text", ["", "0", "0.3", "0.1,0.1", "0.1,0.10000001", "wide"])
def test_widths_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="must be widths"):
        parse_widths(text)
    if text not in ("", "wide"):
        with pytest.raises(ConfigError, match="must list different widths"):
            tiny_config({"train.power_averages": tuple(map(float, text.split(",")))})
