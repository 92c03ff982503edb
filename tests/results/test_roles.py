"""What a run is to its study: which roles are counted, and how the others are named."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from helpers import planted_study
from rfjax import cli
from rfjax.errors import ConfigError
from rfjax.laws import study_fits
from rfjax.laws.fit_source import read_source
from rfjax.laws.trunks import trunks_of
from rfjax.report.findings import subtitle
from rfjax.report.numbers import _with_short_names, report_numbers
from rfjax.results import columns, merge, results_folder

OPTIONS = {"rename": {}, "flops_per_param_image": None, "curves": False, "largest_losses": 0, "max_loss": None}


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """The results folder of a study with three branches of a trunk each, and a sweep; all have losses and scores."""
    root, folders = tmp_path_factory.mktemp("roles"), []
    for depth in (1, 2):
        for name, steps in (("trunk", 900), ("steps500", 500), ("steps1000", 1000), ("steps2000", 2000)):
            folder = root / f"d{depth}-{name}"
            planted_study.write_run(folder, f"planted/{folder.name}", depth, steps, samples=False)
            change_facts(folder, point=f"d{depth}", role="trunk" if name == "trunk" else "branch")
            if name != "trunk":
                before = {"images": 64, "flops": 1e9, "train_seconds": 2.0}
                trunk = {"path": "/gone", "run": f"planted/d{depth}-trunk", "step": steps - 100} | before
                change_facts(folder, trunk=trunk, flops=5e9, train_seconds=7.0)
            folders.append(folder)
    planted_study.write_run(root / "rate", "planted/rate", 2, 3000, penalty=0.5, samples=False)
    change_facts(root / "rate", role="sweep")
    merge.collect([*folders, root / "rate"], root / "results")
    return root / "results"


def change_facts(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_laws_take_branches_and_name_the_others(branched):
    """Catches a trunk's loss, whose rate never fell, or a mistuned run of a sweep, among the points of a law."""
    source = read_source(branched, **OPTIONS)
    assert len(source.final) == 6 and set(source.final["role"]) == {"branch"}
    lines = source.left_out_lines()
    assert [line for line in lines if "2 of role trunk (planted/d1-trunk, planted/d2-trunk)" in line]
    assert [line for line in lines if "1 of role sweep (planted/rate)" in line]
    assert "of 9 finished runs" in source.chosen_line()
    runs = source.study[0].runs
    assert len(runs) == len(source.final) + sum(len(each.runs) for each in source.by_role)


def test_what_is_spent_is_told_beside_what_a_branch_would_cost(branched):
    runs = results_folder.read(branched).runs.set_index("run")
    assert runs.loc["planted/d1-steps500", ["spent_flops", "spent_seconds"]].tolist() == [4e9, 5.0]
    numbers = report_numbers(results_folder.read(branched), resamples=50)
    assert numbers["totals"]["spent_flops"] == 6 * 4e9
    assert [each["role"] for each in numbers["left_out_by_role"]] == ["trunk", "sweep"]
    named = {run["run"] for run in numbers["runs"]}  # by its folder: a point has several
    assert {"d1-trunk", "d2-steps500"} <= named
    runs = [run | {"role": "run"} for run in numbers["runs"]]  # such as one that is trained again without some batches
    assert subtitle(numbers | {"runs": runs}) == subtitle(numbers)


def test_runs_are_points_of_their_trunks_under_any_name(branched):
    """Catches a run and the branches that left it, of which the report shortens only the run's name; branches that only
    a run joins that is no point; and a short name that a trunk from elsewhere has already."""
    results = results_folder.read(branched)

    def changed(**columns):
        frames = {name: getattr(results, name).copy() for name in ("long", "runs")}
        for frame in frames.values():
            for column, of_runs in columns.items():
                frame[column] = frame["run"].map(of_runs).fillna(frame[column])
        return replace(results, **frames)

    def trunks(table):
        points = study_fits.final_points(study_fits.checkpoints(table, study_fits.primary_settings(table)))
        return dict(zip(points["run"], trunks_of(points), strict=True))

    by_hand = changed(role={"planted/d1-trunk": "run"})
    short = _with_short_names(by_hand)
    assert set(short.runs["trunk"]) == {"", "d1", "d2-trunk"}
    for table in (by_hand, short):
        assert len(trunks(table)) == 7 and len(set(trunks(table).values())) == 2
    chain = {"planted/d1-trunk": "planted/d1-steps500", "planted/d1-steps500": ""}
    chained = changed(trunk=chain, role={"planted/d1-trunk": "trunk"})
    assert len(trunks(chained)) == 6 and len(set(trunks(chained).values())) == 2
    elsewhere = changed(trunk={"planted/d1-steps500": "d2-steps500"})
    assert _with_short_names(elsewhere) is elsewhere


def test_a_role_in_anybodys_table_counts(branched, tmp_path, capsys):
    """Catches the project's own rows, copied into a table of one's own, of which all roles are fitted."""
    table = results_folder.read(branched).wide
    rows = table[(table["final"] == 1) & (table["weights"] == "ema")].dropna(subset=["loss"]).drop_duplicates("run")
    rows[["run", "role", "loss", "flops", "params"]].to_csv(tmp_path / "mine.csv", index=False)
    source = read_source(tmp_path / "mine.csv", **OPTIONS)
    assert len(source.final) == 6 and [each.role for each in source.by_role] == ["trunk", "sweep"]
    assert cli.main(["fit", str(tmp_path / "mine.csv"), "--law=power"]) == 0
    assert "left out: 2 of role trunk (planted/d1-trunk, planted/d2-trunk), for" in capsys.readouterr().out


def test_a_table_without_roles_is_read(branched, tmp_path):
    """Catches tables of an earlier version refused, or read without a single point."""
    old = tmp_path / "results"
    merge.collect([branched.parent / name for name in ("d1-steps500", "d2-steps1000", "rate")], old)
    content = json.loads((old / "table.json").read_text())
    for file in columns.FILES:
        text = (old / file).read_text().split("\n")
        keep = [i for i, name in enumerate(text[0].split(",")) if name not in columns.ADDED[5]]
        rows = [",".join(line.split(",")[i] for i in keep) if line else "" for line in text]
        (old / file).write_text("\n".join(rows))
        content["sha256"][file] = results_folder._sha256((old / file).read_bytes())
    (old / "table.json").write_text(json.dumps(content | {"schema": 4}))
    table = results_folder.read(old)
    assert set(table.runs["role"]) == {"run"} and table.runs["spent_flops"].isna().all()
    assert set(table.long.loc[table.long["run"] != "-", "role"]) == {"run"}
    assert len(read_source(old, **OPTIONS).final) == 3


def test_an_unknown_role_is_named(branched, tmp_path):
    planted_study.write_run(tmp_path / "a", "a", 1, 500)
    planted_study.write_run(tmp_path / "b", "b", 1, 500)
    change_facts(tmp_path / "b", role="teacher")
    table = merge.collect([tmp_path / "a", tmp_path / "b"], tmp_path / "results")
    assert len(table.runs) == 1 and re.search(r"role 'teacher'.*run, branch, trunk", table.notes[0])


def test_roles_and_trunks_of_anybodys_table_are_read_in_any_spelling(tmp_path):
    """Catches a trunk that is fitted since its column is called Role, a branch dropped with a trunk of its name, and
    names of trunks that are numbers with gaps."""
    rows = [("a", "Trunk", None, 1e15), ("a", "branch", 7, 2e15), ("b", "Branch", 7, 4e15), ("c", None, None, 8e15)]
    table = pd.DataFrame(rows, columns=["run", "Role", "Trunk", "flops"]).assign(loss=[1.0, 0.9, 0.8, 0.7])
    table["Trunk"] = table["Trunk"].astype("Int64")
    table.to_parquet(tmp_path / "mine.parquet")
    source = read_source(tmp_path / "mine.parquet", **OPTIONS)
    assert source.final["role"].tolist() == ["branch", "branch", "run"] and source.by_role[0].runs == ("a",)
    assert trunks_of(source.final).tolist()[0] == trunks_of(source.final).tolist()[1]
    assert len(set(trunks_of(source.final))) == 2
    chained = table.assign(run=["a", "b", "c", "d"], Trunk=[None, "a", "a", "b"], Role=["", "trunk", "", ""])
    chained.to_parquet(tmp_path / "mine.parquet")
    assert set(trunks_of(read_source(tmp_path / "mine.parquet", **OPTIONS).final)) == {0}
    table.assign(Role="pilot").to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ConfigError, match="role in row 1 of .* is 'pilot'; it must be run, branch"):
        read_source(tmp_path / "mine.parquet", **OPTIONS)
