"""Average ranks of a planted study: known order, intervals, what diverged and what is missing."""

import json

import numpy as np
import pytest

from helpers import planted_ranking
from helpers.planted_ranking import SAMPLERS, control_record, write_variant
from rfjax.errors import ConfigError
from rfjax.evaluation.records import record_name, write_record
from rfjax.ranking.measures import measures_of
from rfjax.ranking.nondominated import nondominated_ranks
from rfjax.ranking.ranks import COLUMNS, rank, rank_interval, resampled_ranks
from rfjax.results import merge, results_folder

# A line of variants, each dominating the next, far apart beside the prompts' scatter.
ORDER = {"rf/lognorm(0.00,1.00)": 0, "rf/lognorm(0.50,0.60)": 1, "rf": 2, "eps/linear": 3, "edm(-1.20,1.20)": 4}


def in_line(place):
    return lambda corpus, weights, steps, guidance: (0.8 - 0.1 * place, 2.0 + 2.0 * place)


def collected(tmp_path, folders):
    merge.collect(folders, tmp_path / "results")
    return results_folder.read(tmp_path / "results")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    root = tmp_path_factory.mktemp("line")
    folders = [f for name, place in ORDER.items() for f in write_variant(root, name, in_line(place))]
    return root, folders


def column(ranking, name):
    return next(column for column in ranking.columns if column.name == name)


def values(column):
    return {one.variant: one.value for one in column.ranks}


def test_a_planted_order_is_found_with_certainty(line, tmp_path):
    """Would catch measures of one run given to another, and samplers or weights taken for one control."""
    measures = measures_of(collected(tmp_path, line[1]))
    assert measures.named_by == "formulation" and len(measures.controls) == 24
    assert measures.variants == (
        "edm(-1.20,1.20)",
        "eps/linear",
        "rf",
        "rf/lognorm(0.00,1.00)",
        "rf/lognorm(0.50,0.60)",
    )
    ranking = rank(measures)
    assert [len(column.controls) for column in ranking.columns] == [24, 4, 4]
    assert {"50" in name and "cfg5-" in name for name in column(ranking, "50 steps").controls} == {True}
    for one in ranking.columns:
        assert values(one) == {name: place + 1.0 for name, place in ORDER.items()}
        assert all(r.low == r.value == r.high for r in one.ranks)
        assert [r.first for r in one.ranks] == [1.0, 0, 0, 0, 0]
    assert not ranking.missing and not measures.diverged


def test_replicates_that_lie_farther_away_change_no_order(line, tmp_path):
    """How much farther resamples lie depends on the variant: on how many directions its images fill. Would
    catch raw replicates ranked, which would put the best here behind the next two."""
    own = measures_of(collected(tmp_path, line[1]))
    own.distance_replicates[:, own.variants.index("rf/lognorm(0.00,1.00)")] += 5.0
    own.alignment_replicates[:] = own.alignment[..., None]
    own.alignment_replicates[:, own.variants.index("rf/lognorm(0.00,1.00)")] = 0.5  # so that the distance decides
    found = resampled_ranks(own, range(24))[:, own.variants.index("rf/lognorm(0.00,1.00)")]
    assert (found == 1).all()


def test_columns_average_over_their_controls_alone(tmp_path):
    """Two variants that change places at 5 steps. Would catch a 5 found in 50 or 25, and an "all" weighted by
    column."""

    def first(corpus, weights, steps, guidance):
        return (0.5, 5.0) if steps == 5 else (0.7, 3.0)

    folders = write_variant(tmp_path, "a", first) + write_variant(tmp_path, "b", lambda *_: (0.6, 4.0), scatter=0.01)
    ranking = rank(measures_of(collected(tmp_path, folders)))
    assert values(column(ranking, "5 steps")) == {"a": 2.0, "b": 1.0}
    assert values(column(ranking, "50 steps")) == {"a": 1.0, "b": 2.0}
    assert values(column(ranking, "all")) == {
        "a": pytest.approx((20 + 4 * 2) / 24),
        "b": pytest.approx((20 * 2 + 4) / 24),
    }


def test_variants_alike_have_intervals_that_say_so(tmp_path):
    """Would catch resamples that are not joint: the scatter that prompts share must not blur the order of
    variants that are apart, and that of their own must."""
    apart = [
        write_variant(tmp_path / "apart", name, in_line(0.02 * k), scatter=1.0) for k, name in enumerate(("a", "b"))
    ]
    own = measures_of(collected(tmp_path / "apart", sum(apart, [])))
    assert own.distance_replicates[0].std(axis=1).min() > 2 * abs(np.diff(own.distance[0])[0])
    blurred = {r.variant: r for r in column(rank(own), "all").ranks}
    assert blurred["a"].value == 1.0 and blurred["b"].value == 2.0
    assert blurred["a"].high > 1.1 and blurred["b"].low < 1.9 and 0.5 < blurred["a"].first <= 1
    # The two corpora made equal are resampled apart all the same: other prompts are other luck.
    assert [c.corpus for c in own.controls] == ["digits"] * 12 + ["shapes"] * 12
    for array in (own.distance, own.alignment_replicates, own.distance_replicates):
        array[12:] = array[:12]
    found = resampled_ranks(own, range(24))
    digits, shapes = found[:12], found[12:]
    assert (digits != shapes).any() and (np.sort(digits) == np.sort(shapes)).all()
    # The same with the run's own scatter taken out: what is left is shared.
    common = own.__class__(
        **{
            **vars(own),
            "alignment_replicates": own.alignment_replicates[:, :1] + (own.alignment - own.alignment[:, :1])[..., None],
            "distance_replicates": own.distance_replicates[:, :1] + (own.distance - own.distance[:, :1])[..., None],
        }
    )
    assert all(r.low == r.value == r.high for r in column(rank(common), "all").ranks)


def test_what_diverged_is_last_and_counts(line, tmp_path):
    """A run that diverged before any record, and one whose samples are not finite. Would catch them dropped,
    which would flatter every variant that sometimes diverges."""
    root, folders = line
    folders = list(folders) + write_variant(tmp_path, "v/cos", None, state="diverged", scored=False)

    def nowhere(corpus, weights, steps, guidance):
        return (0.05, float("nan") if weights == "raw" else 30.0)

    more = write_variant(tmp_path, "edm/cos", lambda *place: (0.05, 30.0))
    for folder in more:  # the raw weights' samples are not finite
        for path in (folder / "evaluations").glob("*.json"):
            record = json.loads(path.read_text())
            if record["key"]["evaluation"] == "ranking" and record["key"]["weights"] == "raw":
                for value in record["values"]:
                    if value["metric"] == "ranking_frechet_distance" and value["item"] == "overall":
                        value |= {"value": None, "stderr": None, "low": None, "high": None}
                record["extra"]["replicates"]["frechet_distance"] = [None] * planted_ranking.RESAMPLES
                write_record(folder, record)
    measures = measures_of(collected(tmp_path, folders + more))
    assert measures.diverged == ("edm/cos", "v/cos")
    found = values(column(rank(measures), "all"))
    # ema: v/cos after edm/cos, which is sixth; raw: both after the fifth.
    assert found == {name: place + 1.0 for name, place in ORDER.items()} | {"edm/cos": 6.0, "v/cos": 6.5}


def test_a_control_counts_only_with_a_record_of_every_variant(line, tmp_path):
    """Would catch averages over unlike controls, and a gap that nobody is told of."""
    root, folders = line
    skip = {("digits", "raw", 5, 5.0), ("shapes", "ema", 50, 2.5)}
    more = write_variant(tmp_path, "v/linear", in_line(2.5), skip=skip)
    ranking = rank(measures_of(collected(tmp_path, list(folders) + more)))
    assert [len(column.controls) for column in ranking.columns] == [22, 3, 4]
    assert sorted(ranking.missing.values()) == [("v/linear",)] * 2
    assert {name.split("-shift")[0] for name in ranking.missing} == {
        "digits, raw, euler-5-cfg5",
        "shapes, ema, euler-50-cfg2.5",
    }
    lacking = write_variant(
        tmp_path / "b", "v/cos", in_line(9), skip={(c, w, 5, 5.0) for c in ("shapes", "digits") for w in ("ema", "raw")}
    )
    none = column(rank(measures_of(collected(tmp_path / "b", list(folders) + lacking))), "5 steps")
    assert none.ranks == () and "no control" in none.reason


def test_runs_without_any_record_are_named(line, tmp_path):
    folders = list(line[1]) + write_variant(tmp_path, "v/cos", None, state="failed", scored=False)
    measures = measures_of(collected(tmp_path, folders))
    assert measures.notes == ("not ranked, for want of a record: digits-v_cos, shapes-v_cos",)
    assert "v/cos" not in measures.variants


def test_fewer_than_two_variants_are_no_ranking(tmp_path):
    assert measures_of(collected(tmp_path, write_variant(tmp_path, "rf", in_line(0)))) is None


def test_variants_are_named_by_what_differs_and_by_the_point_where_that_is_not_enough(tmp_path):
    """Would catch two runs of one formulation taken for one variant, the one overwriting the other."""
    folders = write_variant(tmp_path, "rf", in_line(0), corpora=("shapes",)) + write_variant(
        tmp_path, "v/cos", in_line(1), corpora=("shapes",)
    )
    for folder, backbone in zip(folders, ("mmdit", "dit"), strict=True):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"formulation": "rf", "model": {"backbone": backbone}}))
    measures = measures_of(collected(tmp_path, folders))
    assert (measures.named_by, measures.variants) == ("backbone", ("dit", "mmdit"))
    for folder in folders:
        (folder / "config.json").write_text(json.dumps({"formulation": "rf", "model": {"backbone": "mmdit"}}))
    measures = measures_of(collected(tmp_path, folders))
    assert (measures.named_by, measures.variants) == ("point", ("rf", "v_cos"))


def test_points_of_two_corpora_are_one_variant(tmp_path):
    """Would catch a study of backbones, whose points are told apart by name alone, ranked as if no variant had
    both corpora: no control would then have all of them, and there would be no ranks."""
    folders = write_variant(tmp_path, "rf", in_line(0)) + write_variant(tmp_path, "v/cos", in_line(1))
    for folder in folders:
        (folder / "config.json").write_text(json.dumps({"formulation": "rf", "model": {"backbone": "mmdit"}}))
    measures = measures_of(collected(tmp_path, folders))
    assert measures.variants == ("rf", "v_cos") and {control.corpus for control in measures.controls} == {
        "shapes",
        "digits",
    }
    assert values(column(rank(measures), "all")) == {"rf": 1.0, "v_cos": 2.0}


def test_of_several_seeds_each_is_a_control(tmp_path):
    """Would catch seeds averaged before ranking, or one seed's record replacing another's."""
    folders = []
    for seed in (0, 1):
        for name, place in (("rf", seed), ("v/cos", 1 - seed)):
            (folder,) = write_variant(tmp_path / str(seed), name, in_line(place), corpora=("shapes",))
            run = f"{folder.name}-{seed}"
            facts = json.loads((folder / "run.json").read_text()) | {"seed": seed, "run": run, "point": run}
            (folder / "run.json").write_text(json.dumps(facts))
            for path in (folder / "evaluations").glob("*.json"):
                record = json.loads(path.read_text())
                record["key"]["run"] = run
                path.unlink()
                path.with_name(record_name(record["key"])).write_text(json.dumps(record))
            folders.append(folder)
    measures = measures_of(collected(tmp_path, folders))
    assert measures.variants == ("rf", "v/cos") and len(measures.controls) == 24
    assert values(column(rank(measures), "all")) == {"rf": 1.5, "v/cos": 1.5}
    assert len({control.name for control in measures.controls}) == 24


@pytest.mark.parametrize(
    "changes",
    [{"feature_map": "planted-2"}, {"reference": {"sha1": "others"}}, {"prompt_scores": [["counting", 1, 4]]}],
)
def test_what_cannot_be_compared_is_refused(line, tmp_path, changes):
    """Would catch distances of two feature maps in one ranking, and resamples of unlike prompts paired."""
    more = write_variant(tmp_path, "v/cos", in_line(5), **changes)
    with pytest.raises(ConfigError, match="cannot be ranked together"):
        measures_of(collected(tmp_path, list(line[1]) + more))


def test_records_of_unlike_numbers_of_resamples_are_refused(line, tmp_path, monkeypatch):
    monkeypatch.setattr(planted_ranking, "RESAMPLES", 150)
    more = write_variant(tmp_path, "v/cos", in_line(5))
    with pytest.raises(ConfigError, match="have 150 and 200 resamples"):
        measures_of(collected(tmp_path, list(line[1]) + more))


def test_of_several_steps_the_last_counts(line, tmp_path):
    root, folders = line
    (early,) = write_variant(tmp_path, "v/cos", in_line(-1), corpora=("shapes",), step=100)
    (late,) = write_variant(tmp_path, "v/cos", in_line(9), corpora=("shapes",), skip={("shapes", "raw", 10, 5.0)})
    assert early == late
    measures = measures_of(collected(tmp_path, [f for f in folders if "shapes" in f.name] + [late]))
    assert measures.notes == ("shapes-v_cos: measured at several steps; the last counts",)
    ranking = rank(measures)
    assert values(column(ranking, "all"))["v/cos"] == 6.0
    assert list(ranking.missing) == ["shapes, raw, euler-10-cfg5-shift1-10x4"]  # the early record does not fill the gap


def test_readers_of_genevals_own_scores_see_none_of_this(line, tmp_path):
    """Would catch a control's score in the wide view's geneval columns, or in prompts.csv, where it would be
    correlated with the loss as if it were the run's."""
    found = collected(tmp_path, line[1])
    assert found.prompts.empty
    assert not [name for name in found.wide.columns if name.startswith("geneval")]
    assert {"ranking_geneval_overall", "ranking_frechet_distance_overall"} <= set(found.wide.columns)
    assert len(found.replicates) == 5 * 24 * 2


def test_intervals_cover_the_rank_of_infinitely_many_prompts():
    """40 studies of 10 variants under 12 controls with GenEval-like noise: of the average ranks that the true
    qualities have, the intervals must hold nine in ten and more. Would catch intervals of the measured
    rank that forget that noise moves ranks: the plain percentiles hold 90 %, moved to the estimate 85 %."""
    rng = np.random.default_rng(1)
    resamples = planted_ranking.resamples_of_prompts([10] * 6, 0, 100) / 60
    held = []
    for _ in range(40):
        quality = rng.normal(size=10)
        up = np.clip(0.5 + 0.1 * (quality + 0.5 * rng.normal(size=(12, 10))), 0.05, 0.95)
        down = 5 - (quality + 0.7 * rng.normal(size=(12, 10)))
        truth = nondominated_ranks(up, down).mean(axis=0)
        hard = 0.15 * rng.normal(size=60)
        right = (
            rng.binomial(4, np.clip(up[..., None] + hard - hard.mean() + 0.1 * rng.normal(size=(12, 10, 60)), 0, 1)) / 4
        )
        away = down[..., None] + 2 * rng.normal(size=60) + 1.5 * rng.normal(size=(12, 10, 60))
        found = nondominated_ranks(right.mean(-1), away.mean(-1)).mean(axis=0)
        drawn = nondominated_ranks(
            np.moveaxis(right @ resamples.T, -1, 1), np.moveaxis(away @ resamples.T, -1, 1)
        ).mean(axis=0)
        low, high = rank_interval(found, drawn.T)
        held.append((low <= truth) & (truth <= high))
    assert 0.92 < np.mean(held) < 0.98


def test_columns_are_the_papers():
    assert list(COLUMNS) == ["all", "5 steps", "50 steps"] and len(SAMPLERS) == 6
    assert (
        control_record("r", 0.5, 1.0, corpus="shapes", weights="ema", steps=5, guidance=5.0)["key"]["sampler"]
        == "euler-5-cfg5-shift1-10x4"
    )
