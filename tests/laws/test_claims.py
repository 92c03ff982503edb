"""Claims of published laws against tables whose law is planted: what agrees, what contradicts, what stays open."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers import planted_study
from helpers.planted_tables import isoflop, optimal_grid, training_curves
from rfjax.errors import ConfigError
from rfjax.laws import bowl, claim_evidence, study_fits
from rfjax.laws.claims import CLAIMS, board
from rfjax.laws.fitting import Estimate, FitOptions
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.verdicts import VERDICTS, judge_bound, judge_value
from rfjax.results import merge, results_folder

OPTIONS = FitOptions(resamples=100, held_out=False)
HELD_OUT = replace(OPTIONS, held_out=True)
TESTS = {claim.name: claim.test for claim in CLAIMS}


def evidence_of(table, tokens=None, options=OPTIONS):
    return claim_evidence.of_table(table, options, tokens)


def evidence_of_study(results):
    settings = study_fits.primary_settings(results)
    rows = study_fits.checkpoints(results, settings)
    analysis = study_fits.analyse(study_fits.final_points(rows), OPTIONS)
    return claim_evidence.of_study(analysis, rows, results, settings, OPTIONS)


def verdicts(evidence, *names):
    return tuple(TESTS[name](evidence).verdict for name in names)


@pytest.fixture(scope="module")
def equal():
    """alpha = beta = 0.3, so N* grows as C^0.5; 200 image tokens per parameter; E = 0.3."""
    return evidence_of(optimal_grid(noise=0.002))


@pytest.fixture(scope="module")
def more_size():
    """beta / (alpha + beta) = 0.568: size faster than data."""
    return evidence_of(optimal_grid(alpha=0.25, beta=0.3287, noise=0.002))


SLOPES = "slope_half", "slope_more"


def test_a_planted_slope_is_told_from_its_rival(equal, more_size):
    """Catches verdicts that are swapped, and a slope taken for that of the data."""
    assert verdicts(equal, *SLOPES) == ("agrees", "contradicts")
    assert verdicts(more_size, *SLOPES) == ("contradicts", "agrees")
    found = TESTS["slope_half"](equal).found
    assert found.low < 0.5 < found.high and found.high - found.low < 0.07


def test_noise_leaves_the_slope_open_and_says_how_many_runs_would_close_it():
    """Catches a contradiction that an interval does not bear out, and a remedy that is not a number."""
    found = [TESTS[name](evidence_of(optimal_grid(noise=0.03))) for name in SLOPES]
    assert "agrees" not in [one.verdict for one in found] and "undecided" in [one.verdict for one in found]
    open_one = next(one for one in found if one.verdict == "undecided")
    assert "times as many independent runs" in open_one.decide or "decide the optimum" in open_one.decide


def test_six_runs_decide_nothing_by_a_law_of_five_parameters():
    """Catches verdicts that rest on one residual: six runs with hardly any noise agreed and contradicted at will."""
    six = optimal_grid(noise=0.0001).iloc[[0, 4, 8, 12, 20, 24]]
    evidence = evidence_of(six)
    assert evidence.fits[PARAMETRIC.name].n == 6
    found = {name: TESTS[name](evidence) for name in (*SLOPES, "no_floor", "flat_bowl", "near_optimum", "asymmetry")}
    assert {judged.verdict for judged in found.values()} == {"undecided"}
    assert any("8 runs or more: the parametric law has 5 parameters" in judged.decide for judged in found.values())


def test_an_interval_knows_which_branches_share_a_trunk():
    """Catches an estimate and an interval that take five branches of each of five trunks for 25 independent runs: they
    miss the true slope of 1/2, which those that know the trunks find."""
    table = optimal_grid(noise=0.002)
    luck = 0.02 * np.random.default_rng(100).standard_normal(5)
    sizes = table["params"].rank(method="dense").astype(int).to_numpy() - 1
    table = table.assign(loss=table["loss"] * np.exp(luck[sizes]))
    alone, shared = (evidence_of(one) for one in (table, table.assign(trunk=[f"trunk{n}" for n in sizes])))
    assert shared.fits[PARAMETRIC.name].scatter.trunks == 5
    taken, known = (TESTS["slope_half"](evidence).found for evidence in (alone, shared))
    assert not taken.low <= 0.5 <= taken.high and known.low <= 0.5 <= known.high
    assert abs(taken.value - 0.5) > 0.1 and known.value == pytest.approx(0.5, abs=0.01)
    assert verdicts(shared, "slope_half") == ("agrees",)


def test_each_paper_is_judged_in_its_own_count_of_compute():
    """A cost that grows as N^0.8 changes the slope: Liang's is of C = 6 N D, Abra's of the FLOPs themselves."""
    table = optimal_grid(noise=0.001)
    evidence = evidence_of(table.assign(flops=1e3 * table["params"] ** 0.8 * table["images"]))
    assert TESTS["slope_more"](evidence).found.value == pytest.approx(0.5, abs=0.01)
    assert TESTS["slope_half"](evidence).found.value == pytest.approx(1 / 1.8, abs=0.01)


def test_parabolas_that_disagree_leave_the_slope_open():
    """Two methods that exclude each other decide nothing: the fit's narrow interval was believed alone."""
    evidence = evidence_of(isoflop(4, sizes=7, noise=0.001))
    assert evidence.parabolas is not None
    judged = TESTS["slope_half"](evidence)
    assert "parabolas at 4 budgets" in judged.notes[-1] and judged.verdict != "undecided"
    line = replace(evidence.parabolas, a=Estimate(value=0.7, low=0.69, high=0.71))
    judged = TESTS["slope_half"](replace(evidence, parabolas=line))
    assert judged.verdict == "undecided" and "disagree" in judged.decide


@pytest.mark.parametrize("seed", range(3))
def test_a_floor_is_found_and_the_want_of_one_is_never_contradicted(seed):
    """Catches an interval of E that is read the wrong way round, or not as a share of the loss."""
    with_floor, without = (evidence_of(optimal_grid(offset=e, noise=0.002, seed=seed)) for e in (0.3, 0.0))
    assert verdicts(with_floor, "no_floor") == ("contradicts",)
    assert verdicts(without, "no_floor") in (("agrees",), ("undecided",))
    assert TESTS["no_floor"](without).found.low == 0.0


def test_no_floor_agrees_only_where_a_floor_of_any_size_is_excluded():
    """An interval from 0 to 90 % of the smallest loss holds E = 0 and says nothing."""
    clean = evidence_of(optimal_grid(offset=0.0, noise=0.0003))
    judged = TESTS["no_floor"](clean)
    assert judged.verdict == "agrees" and judged.found.high < 0.1
    rough = evidence_of(optimal_grid(offset=0.0, noise=0.05))
    assert rough.lack(PARAMETRIC.name) or TESTS["no_floor"](rough).verdict == "undecided"


def test_laws_are_compared_on_runs_they_have_not_seen():
    """A power law with a floor beneath it bends: the pure power predicts worse, and is contradicted."""
    flops = np.geomspace(1e17, 1e21, 14)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(14))
    table = pd.DataFrame({"run": list("abcdefghijklmn"), "flops": flops})
    bent = evidence_of(table.assign(loss=(0.3 + 3e3 * flops**-0.25) * noise), options=HELD_OUT)
    straight = evidence_of(table.assign(loss=3e3 * flops**-0.25 * noise), options=HELD_OUT)
    assert verdicts(bent, "power_predicts", "no_floor") == ("contradicts", "contradicts")
    assert verdicts(straight, "power_predicts")[0] != "contradicts" and verdicts(straight, "no_floor")[0] == "agrees"
    assert "columns params, images" in TESTS["slope_half"](bent).decide


def test_tokens_per_parameter(equal):
    """Catches images for tokens, and an optimum that is taken at another compute than the runs'."""
    judged = TESTS["tokens_constant"](equal)
    assert judged.verdict == "agrees" and judged.found.low < 200 < judged.found.high
    ten_times = evidence_of(optimal_grid(noise=0.002, tokens_per_param=2000))
    assert verdicts(ten_times, "tokens_constant") == ("contradicts",)
    bare = equal.points.drop(columns=["image_tokens", "image_tokens_per_param"])
    judged = TESTS["tokens_constant"](evidence_of(bare))
    assert judged.verdict == "cannot be tested" and "no column image_tokens" in judged.decide
    assert TESTS["tokens_constant"](evidence_of(bare, tokens=256.0)).found == TESTS["tokens_constant"](equal).found
    with pytest.raises(ConfigError, match="--tokens-per-image is given, and the table has a column image_tokens"):
        evidence_of(equal.points, tokens=256.0)


def test_text_tokens_are_counted_for_the_paper_that_counts_them(equal):
    """Liang's tokens hold the text's: 154 of them beside 256 make 1.6 times as many."""
    points = equal.points
    with_text = points.assign(tokens_per_param=(256 + 154) * points["images"] / points["params"])
    near = with_text.assign(params=points["params"] / 10, images=points["images"] / 10, flops=points["flops"] / 100)
    evidence = evidence_of(near.assign(image_tokens=256 * near["images"]))
    assert evidence.tokens.text == pytest.approx(154)
    most = 6 * 410 * float((near["params"] * near["images"]).max())  # C of the largest run as Liang counts it
    assert evidence.frontier_6nd.flops[1] == pytest.approx(most)
    judged = TESTS["tokens_by_compute"](evidence)
    assert judged.found.value == pytest.approx(200 * 410 / 256, rel=0.05) and judged.verdict == "contradicts"
    assert TESTS["tokens_by_compute"](equal).verdict == "cannot be tested"
    far = evidence_of(with_text)
    judged = TESTS["tokens_by_compute"](far)
    assert judged.verdict == "cannot be tested" and "within a factor 10 of the law's own" in judged.decide


def test_the_bowl_is_that_of_the_law(equal, more_size):
    """The closed form against the law itself at N and D off the optimum, with the cost of the table: N D, and N^0.8 D,
    whose eta is not 1."""
    points = equal.points
    uneven = evidence_of(points.assign(flops=1e4 * points["params"] ** 0.8 * points["images"]))
    assert uneven.frontier.cost.eta == pytest.approx(0.8)
    for evidence in (equal, more_size, uneven):
        frontier, fitted = evidence.frontier, evidence.fits[PARAMETRIC.name]
        best = frontier.at(frontier.reference)
        least = fitted.predict({"params": [best.params.value], "images": [best.images.value]})[0]
        for factor in (0.25, 2.0, 4.0):
            size = bowl.size_at(frontier, factor)
            params, images = best.params.value * size, best.images.value * size**-frontier.cost.eta
            assert images / params == pytest.approx(factor * best.images_per_param.value)
            loss = fitted.predict({"params": [params], "images": [images]})[0]
            assert bowl.excess_at(frontier, size).value == pytest.approx(loss / least - 1, rel=1e-6)
    assert bowl.asymmetry(more_size.frontier, 4.0).value > 1.0


def test_a_flat_bowl_and_a_steep_one(equal):
    """Catches a per cent for a fraction. alpha = beta = 1 and no floor make a bowl of 6 %."""
    assert verdicts(equal, "flat_bowl", "near_optimum", "asymmetry") == ("agrees", "agrees", "undecided")
    steep = evidence_of(optimal_grid(alpha=1.0, beta=1.0, offset=0.0, noise=0.002))
    assert verdicts(steep, "flat_bowl", "near_optimum") == ("contradicts", "contradicts")


def test_under_training_is_worse_where_size_grows_faster_than_data(more_size):
    assert verdicts(more_size, "asymmetry") == ("agrees",)
    less = evidence_of(optimal_grid(alpha=0.33, beta=0.25, noise=0.002))
    assert verdicts(less, "asymmetry") == ("contradicts",)


def levels_table(exponents, noise=0.001, common=0.0, n=12):
    rng = np.random.default_rng(3)
    flops = np.geomspace(1e16, 1e20, n)
    of_run = common * rng.standard_normal(n)
    table = pd.DataFrame({"run": [f"r{i}" for i in range(n)], "flops": flops, "loss": flops**-0.1})
    for t, b in exponents.items():
        table[f"loss@t={t:g}"] = (flops / 1e18) ** -b * np.exp(of_run + noise * rng.standard_normal(n))
    return table


@pytest.mark.parametrize(
    ("exponents", "more", "verdict"),
    [
        ({0.25: 0.10, 0.5: 0.10, 0.75: 0.10}, {}, "contradicts"),
        ({0.25: 0.10, 0.5: 0.12, 0.75: 0.10}, {}, "agrees"),
        ({0.25: 0.10, 0.5: 0.12, 0.75: 0.10}, {"common": 0.1}, "agrees"),  # a run's luck moves all levels alike
        ({0.25: 0.10, 0.5: 0.10, 0.75: 0.10}, {"noise": 0.1}, "undecided"),
        ({0.25: 0.10, 0.5: 0.10}, {"n": 3}, "undecided"),
    ],
)
def test_levels_of_t(exponents, more, verdict):
    """Catches a test that is not paired over runs, and one without an answer for equal exponents."""
    evidence = evidence_of(levels_table(exponents, **more))
    judged = TESTS["levels"](evidence)
    assert judged.verdict == verdict and "t = 0.25: " in judged.notes[0]
    if not more:  # the figure's numbers: each level has its own exponent, to three errors of its fit
        found = evidence.levels.exponents
        assert {t: b.value for t, b in found.items()} == pytest.approx(exponents, abs=1e-3)
        assert all(b.high - b.low < 2e-3 for b in found.values())


def test_ends_of_the_path_are_left_out_by_name():
    """At t = 1 nothing of the image is left and the loss hardly falls: with it, exponents always differ."""
    table = levels_table({0.25: 0.10, 0.5: 0.10, 1.0: 0.0})
    judged = TESTS["levels"](evidence_of(table))
    assert judged.verdict == "contradicts" and "left out: t = 1" in judged.notes[-1]


def test_branches_of_a_trunk_are_one_point_of_levels():
    table = levels_table({0.25: 0.10, 0.5: 0.12})
    judged = TESTS["levels"](evidence_of(table.assign(trunk=[f"trunk{i // 4}" for i in range(12)])))
    assert judged.verdict == "undecided" and "4 independent runs or more, not 3" in judged.decide


def test_curves_that_collapse_and_curves_that_do_not():
    """Catches curves normalised by the wrong floor or end, and a spread of one size with itself."""
    table = optimal_grid(noise=0.001)
    same = evidence_of(training_curves(table, lambda params: 0.4 + 0 * params))
    assert len(same.points) == len(table) and same.rules["checkpoints"].startswith("250 rows of 25 runs")
    judged = TESTS["collapse"](same)
    assert judged.verdict == "agrees" and judged.found.high < 0.05
    found = same.collapse  # the planted curve is that of every size
    np.testing.assert_allclose(found.curves, np.broadcast_to(found.shares**-0.4, found.curves.shape), rtol=0.03)
    assert len(set(found.params)) == len(found.runs) >= 3 and found.shares[-1] == pytest.approx(1)
    unlike = evidence_of(training_curves(table, lambda params: 0.4 * (params / 3e8) ** 0.3))
    assert TESTS["collapse"](unlike).verdict == "contradicts"
    judged = TESTS["collapse"](evidence_of(table))
    assert judged.verdict == "cannot be tested" and "training curves" in judged.decide


def test_rows_of_a_run_that_cannot_be_ordered_are_refused(equal):
    """Two seeds under one name would pass for checkpoints, and one of them be lost."""
    twice = pd.concat([equal.points, equal.points.iloc[[3]].assign(loss=0.9)])
    with pytest.raises(ConfigError, match="run 'r03' has several rows with the same images"):
        evidence_of(twice)


def test_loss_ranks_geneval():
    """Catches a positive correlation taken for agreement, and branches counted as runs."""
    table = optimal_grid().head(10)
    wobble = 0.002 * np.random.default_rng(0).standard_normal(10)
    good = table.assign(geneval=1 - table["loss"] / table["loss"].max() * 0.8 + wobble)
    bad = table.assign(geneval=0.8 * table["loss"] / table["loss"].max() + wobble)
    assert verdicts(evidence_of(good), "loss_ranks_geneval") == ("agrees",)
    assert verdicts(evidence_of(bad), "loss_ranks_geneval") == ("contradicts",)
    shared = evidence_of(good.assign(trunk=[f"trunk{i // 3}" for i in range(10)]))
    judged = TESTS["loss_ranks_geneval"](shared)
    assert judged.verdict == "undecided" and judged.method.startswith("4 runs")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The evidence of a study of five depths: the best guidance falls with depth, and so does the drop at two steps."""
    root = tmp_path_factory.mktemp("sampled")
    finished = tuple((f"depth{d}", d, 2000, 3e-3) for d in range(1, 6))
    folders = planted_study.write_study(root / "runs", finished=finished, failed=False, samples=False)
    for depth, folder in enumerate(folders, start=1):
        common = {"images": 2000 * 64, "flops": 1.0, "weights": "ema"}
        for place, scale in enumerate((1, 2, 3, 4, 5, 6, 7)):
            score = 0.6 - 0.02 * abs(place - (6 - depth))
            values = planted_study.score_values("geneval", score / 1.0)
            sampler = f"euler-20-cfg{scale}-shift1-40x4"
            planted_study.put(folder, folder.name, 2000, "geneval", values, sampler=sampler, **common)
        right = np.random.default_rng(depth).binomial(4, 0.6, 120)
        for steps, lost in ((2, 0.5 - 0.08 * depth), (50, 0.0)):
            correct = np.random.default_rng(7).binomial(right, 1 - lost) if lost else right
            score = float(correct.mean() / 4)
            values = [planted_study.value("sampling", i, score, 0.02, 480) for i in ("overall", *planted_study.TASKS)]
            values += [planted_study.value(f"sampling_{n}", "mean", 1.0, 0.1, 480) for n in ("path_length", "distance")]
            scores = [[planted_study.TASKS[i // 20], int(c), 4] for i, c in enumerate(correct)]
            sampler = f"euler-{steps}-cfg4-shift1-20x4-of50"
            extra = {"prompt_scores": scores}
            planted_study.put(
                folder, folder.name, 2000, "sampling_steps", values, sampler=sampler, extra=extra, **common
            )
    return evidence_of_study(merge.collect(folders, root / "results"))


def test_guidance_and_steps_against_size(sampled):
    """Catches sizes in another order than their scores, and a reference that is compared with itself."""
    judged = TESTS["guidance_falls"](sampled)
    assert judged.verdict == "agrees" and judged.found.value == -1, judged
    judged = TESTS["steps_fall"](sampled)
    assert judged.verdict == "agrees" and "at 2 of 50 steps" in judged.quantity, judged


def test_branches_and_their_prompts_are_averaged_alike(study):
    """Scores redrawn by prompt for seven runs cannot be set beside the losses of five trunks."""
    evidence = evidence_of_study(results_folder.read(study))
    assert TESTS["loss_ranks_geneval"](evidence).method.startswith("7 runs; two-level bootstrap over 7 runs and over")
    points = evidence.points.assign(trunk=list("aaabcde"))
    judged = TESTS["loss_ranks_geneval"](replace(evidence, points=points))
    assert judged.method.startswith("5 runs; two-level bootstrap over 5 runs and over the prompts"), judged


def test_no_claim_is_passed_over_in_silence(equal):
    """A table of losses alone has an answer to each claim: what it lacks, by the column's name."""
    bare = pd.DataFrame({"run": list("abcdef"), "loss": np.linspace(1, 0.5, 6)})
    for content in (board(evidence_of(bare)), board(equal)):
        assert [row["name"] for row in content["verdicts"]] == [claim.name for claim in CLAIMS]
        for row in content["verdicts"]:
            assert row["verdict"] in VERDICTS and row["rule"] and row["source"]
            assert row["decide"] or row["verdict"] in ("agrees", "contradicts")
    assert {row["verdict"] for row in board(evidence_of(bare))["verdicts"]} == {"cannot be tested"}


def test_the_rules():
    """The three rules by hand: a value against a rival, a value alone, a bound."""
    at, half, more = Estimate(value=0.52, low=0.48, high=0.56), (0.49, 0.51), (0.57, 0.58)
    assert judge_value(at, half, rival=more).verdict == "agrees"
    assert judge_value(at, more, rival=half).verdict == "contradicts"
    for claimed, rival in ((half, more), (more, half)):
        both = judge_value(Estimate(value=0.53, low=0.47, high=0.59), claimed, rival=rival)
        assert both.verdict == "undecided" and "no wider than 0.06 (now 0.12): about 4 times as many" in both.decide
    assert judge_value(at, (0.1, 0.47), narrow=1.0).verdict == "contradicts"
    assert judge_value(Estimate(value=2.0, low=1.0, high=3.0), 2.0, narrow=2.0, ratio=True).verdict == "undecided"
    assert judge_value(Estimate(value=2.0, low=1.5, high=2.9), 2.0, narrow=2.0, ratio=True).verdict == "agrees"
    assert [judge_bound(at, b, above=False).verdict for b in (0.4, 0.5, 0.6)] == ["contradicts", "undecided", "agrees"]
    assert "about 4 times as many" in judge_bound(at, 0.5, above=True).decide
    assert judge_value(Estimate(value=0.5), 0.5).verdict == "undecided"


@pytest.mark.full
def test_verdicts_are_rarely_wrong():
    """Of 40 tables with a scatter of 1 %, a true slope is contradicted, and a false one agreed with, in 5 % or so."""
    wrong = {"true": 0, "false": 0, "floor": 0}
    for seed in range(40):
        evidence = evidence_of(optimal_grid(noise=0.01, seed=1000 + seed), options=replace(OPTIONS, resamples=200))
        half, more, floor = verdicts(evidence, *SLOPES, "no_floor")
        wrong["true"] += half == "contradicts"
        wrong["false"] += more == "agrees"
        wrong["floor"] += floor == "agrees"
    assert wrong["true"] <= 4 and wrong["false"] <= 4 and wrong["floor"] == 0, wrong
