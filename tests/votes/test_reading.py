"""Files of votes: what is joined, what is refused by name, who is left out; and agreement's published values."""

import dataclasses
import json
from datetime import timedelta

import pytest

from helpers.planted_votes import Planted, draw, files_of, keyed, pair_of, votes_of, write_votes
from rfjax.compare import study_files
from rfjax.compare.design import left_and_right
from rfjax.errors import ConfigError
from rfjax.evaluation import preference
from rfjax.votes.agreement import alpha_of_votes, nominal_alpha
from rfjax.votes.analysis import analyse
from rfjax.votes.raters import judge
from rfjax.votes.reading import read_votes, vote_files
from rfjax.votes.study import read_keyed_study

PLANTED = Planted(strengths=(0.5, -0.5), raters=6, prompts=16, share=1.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two runs: the study with its key, and all its votes."""
    found = keyed(PLANTED, tmp_path_factory.mktemp("study"))
    return found, votes_of(found.asked, draw(PLANTED, 0))


def test_the_files_may_come_in_any_order_and_twice(study, tmp_path):
    """The very same result: from one file, from mixed halves, with a file handed in twice, saved by a spreadsheet."""
    found, votes = study
    whole = write_votes(tmp_path / "all.csv", found.asked, votes)
    halves = [write_votes(tmp_path / f"{k}.csv", found.asked, votes[::-1][k::2]) for k in (1, 0)]
    saved = tmp_path / "saved.csv"
    saved.write_bytes(b"\xef\xbb\xbf" + halves[0].read_bytes().replace(b",", b";").replace(b"\n", b"\r\n"))
    one, other = read_votes(found, [whole]), read_votes(found, [halves[0], saved, halves[1]])
    assert other.doubled == len(votes) // 2 and (one.doubled, one.replaced) == (0, 0)
    ignored = dict.fromkeys(("files", "doubled"), 0)
    assert analyse(found, one) | ignored == analyse(found, other) | ignored


def test_the_latest_answer_counts(study, tmp_path):
    found, votes = study
    later = dataclasses.replace(votes[0], choice=-votes[0].choice or 1, at=votes[0].at + timedelta(minutes=1))
    for order in ([votes[0], later], [later, votes[0]]):
        joined = read_votes(found, [write_votes(tmp_path / "votes.csv", found.asked, order)])
        assert joined.replaced == 1 and [vote.choice for vote in joined.votes] == [later.choice]
    same_time = dataclasses.replace(later, at=votes[0].at)
    with pytest.raises(
        ConfigError, match="two answers of rater r00 to aesthetics of pair .* at the same time; ask the"
    ):
        read_votes(found, [write_votes(tmp_path / "votes.csv", found.asked, [votes[0], same_time])])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("study", "0123456789abcdef", "has study '0123456789abcdef'; this study is"),
        ("rater", "r99", "has rater 'r99'; the study's raters are r00, r01"),
        ("pair", "000000000000", "has pair '000000000000'; the study has no such pair"),
        ("question", "typography", "has question 'typography'; the pair is not asked it"),
        ("choice", "both", "has choice 'both'; it must be left, tie, right"),
        ("left", "000000000000", "has images 000000000000 and"),
        ("seconds", "-3", "has seconds '-3'; it must be a number from 0"),
        ("at", "yesterday", "has at 'yesterday'; it must be a time such as"),
        ("choice", "", "has no choice; the file was cut or edited"),
    ],
)
def test_a_wrong_row_is_refused_by_file_and_line(study, tmp_path, name, value, said):
    found, votes = study
    path = write_votes(tmp_path / "votes.csv", found.asked, votes[:3])
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[2][study_files.VOTE_COLUMNS.index(name)] = value
    path.write_text("\n".join(",".join(line) for line in lines))
    with pytest.raises(ConfigError) as caught:
        read_votes(found, [path])
    assert str(caught.value).startswith(f"line 3 of {path} {said}")


def test_a_row_whose_sides_were_exchanged_is_refused(study, tmp_path):
    """Such an edit gives the vote to the other image."""
    found, votes = study
    dealt = {rater: [pair.pair for pair in found.asked.pairs] for rater in found.raters}
    found = dataclasses.replace(found, asked=dataclasses.replace(found.asked, assigned=dealt))
    left, right = left_and_right(found.id, votes[0].rater, found.pairs[votes[0].pair])
    path = write_votes(tmp_path / "votes.csv", found.asked, [dataclasses.replace(votes[0], left=left, right=right)])
    assert read_votes(found, [path]).votes[0].left == left
    write_votes(path, found.asked, [dataclasses.replace(votes[0], left=right, right=left)])
    with pytest.raises(
        ConfigError, match=f"^line 2 of {path} has image {right} on the left of pair {votes[0].pair}, and"
    ):
        read_votes(found, [path])


def test_wrong_files_are_refused(study, tmp_path):
    found, _ = study
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="has the columns a, b; a file of votes has study, rater"):
        read_votes(found, [tmp_path / "other.csv"])
    with pytest.raises(ConfigError, match=r"no votes: .*votes has no .csv file; put the raters' files there"):
        vote_files(tmp_path)
    asked, key = files_of(PLANTED)
    assigned = {rater: [pair_of(0, 1, 0)] for rater in asked.raters}
    study_files.write_study(tmp_path, dataclasses.replace(asked, assigned=assigned), key)
    strange = votes_of(asked, draw(PLANTED, 0))[-1]
    with pytest.raises(ConfigError, match="rater r05 was not asked about it"):
        read_votes(read_keyed_study(tmp_path), [write_votes(tmp_path / "votes.csv", asked, [strange])])
    content = json.loads((tmp_path / "key.json").read_text())
    content["runs"] = dict.fromkeys(content["runs"], "one")
    (tmp_path / "key.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="names two sides 'one'"):
        read_keyed_study(tmp_path)
    content["images"] = {name: of | {"run": next(iter(content["runs"]))} for name, of in content["images"].items()}
    (tmp_path / "key.json").write_text(json.dumps(content | {"runs": {next(iter(content["runs"])): "one"}}))
    with pytest.raises(ConfigError, match="does not give pair .* images of two sides"):
        read_keyed_study(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: data.rindex(b",") - 2], "line 4 of .* has no at; the file was cut or edited"),
        (lambda data: data.rstrip()[:-18], "line 4 of .* has at '.*'; it must be a time such as"),
        (lambda data: data.rstrip() + b",more\n", "line 4 of .* has 10 cells and the header 9 columns"),
        (lambda data: data.replace(b"choice", b"vote", 1), "has the columns study, .*: export it again"),
        (lambda data: data.replace(b"seconds", b"choice", 1), "has the columns study, .*: export it again"),
        (lambda data: b"", "because it is empty"),
        (lambda data: b"\xff\xfe\x00\x01" + data, r"has the columns .*\.\.\.; a file of votes has study"),
    ],
)
def test_a_file_that_was_cut_or_changed_is_refused(study, tmp_path, damage, said):
    found, votes = study
    path = write_votes(tmp_path / "votes.csv", found.asked, votes[:3])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=said) as caught:
        read_votes(found, [path])
    assert str(path) in str(caught.value)


def test_a_page_that_was_open_twice_loses_nothing(study, tmp_path):
    """Two tabs, each saved: answers of either are there; of two answers to one question the later counts, in whatever
    order the files come; an edited copy of one is refused by both lines."""
    found, votes = study
    own = [vote for vote in votes if vote.rater == "r01"]
    again = [dataclasses.replace(own[4], choice=1 - abs(own[4].choice), at=own[4].at + timedelta(seconds=9))]
    first = write_votes(tmp_path / "first.csv", found.asked, own[:8])
    second = write_votes(tmp_path / "second.csv", found.asked, own[5:] + again)
    one, other = read_votes(found, [first, second]), read_votes(found, [second, first])
    assert [vote.choice for vote in one.votes] == [vote.choice for vote in other.votes]
    assert {(vote.pair, vote.question) for vote in one.votes} == {(vote.pair, vote.question) for vote in own}
    assert (one.doubled, one.replaced) == (3, 1)
    kept = {vote.pair: vote.choice for vote in one.votes}
    assert kept[own[4].pair] == again[0].choice and kept[own[0].pair] == own[0].choice
    edited = [dataclasses.replace(own[0], choice=own[0].choice - 1 if own[0].choice > -1 else 1)]
    with pytest.raises(
        ConfigError, match="line 2 of .*edited.csv and line 2 of .*first.csv are two answers of rater r01"
    ):
        read_votes(found, [first, write_votes(tmp_path / "edited.csv", found.asked, edited)])


def test_rows_that_were_taken_out_are_seen_in_the_count(study, tmp_path):
    """A row that was taken out looks like one that was never given: the table of raters shows both numbers."""
    found, votes = study
    own = [vote for vote in votes if vote.rater == "r02"]
    joined = read_votes(found, [write_votes(tmp_path / "votes.csv", found.asked, own[:-5])])
    rater = next(one for one in judge(found, joined.votes) if one.rater == "r02")
    assert (rater.answers, rater.asked) == (len(own) - 5, 28) and not rater.left_out
    none = read_votes(found, [write_votes(tmp_path / "none.csv", found.asked, [])])
    assert not none.votes and all(not one.answers for one in judge(found, none.votes))


def test_raters_are_left_out_by_the_rule(study):
    found, votes = study
    checks = [pair.pair for pair in found.asked.pairs if pair.check and "right" in pair.check]
    repeats = [pair.pair for pair in found.asked.pairs if pair.check and "repeats" in pair.check]
    assert len(checks) == len(repeats) == 6

    def changed(vote):
        if vote.rater == "r00" and vote.pair in checks[:2]:  # 4 of 6 right
            return dataclasses.replace(vote, choice=0)
        if vote.rater == "r01" and vote.pair in checks[:1]:  # 5 of 6
            return dataclasses.replace(vote, choice=-vote.choice)
        if vote.rater == "r02" and vote.pair in repeats:
            return dataclasses.replace(vote, choice=-vote.choice if vote.choice else 1)
        return dataclasses.replace(vote, choice=1) if vote.rater == "r03" and vote.pair in found.compared else vote

    given = [
        changed(vote) for vote in votes if vote.rater != "r05" and not (vote.rater == "r04" and vote.pair in checks)
    ]
    raters = {one.rater: one for one in judge(found, given)}
    assert raters["r00"].left_out == "right in 4 of 6 plain checks"
    assert not raters["r01"].left_out and (raters["r01"].right, raters["r01"].plain) == (5, 6)
    assert not raters["r02"].left_out and (raters["r02"].same, raters["r02"].repeats) == (0, 6)
    assert raters["r03"].same < 6 and raters["r01"].same == 6
    assert not raters["r04"].judged and not raters["r04"].left_out
    assert (raters["r05"].answers, raters["r05"].asked, raters["r05"].seconds) == (0, 28, None)
    assert not raters["r03"].left_out  # 16 votes are too few to tell


def test_a_rater_with_one_answer_is_left_out(tmp_path):
    planted = Planted(strengths=(0.5, -0.5), raters=6, prompts=25, share=1.0)
    found = keyed(planted, tmp_path, checks=2)
    for choice, name in ((1, "left"), (0, "tie")):
        votes = votes_of(found.asked, draw(planted, 0))
        given = [
            dataclasses.replace(v, choice=choice) if v.rater == "r03" and v.pair in found.compared else v for v in votes
        ]
        left_out = {one.rater: one.left_out for one in judge(found, given)}
        assert left_out.pop("r03") == f"answered {name} in 25 of 25 votes" and not any(left_out.values())


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        (("0100000010", "1110010000"), 0.0952),
        (("123321412***", "1233224125*3", "*3332342251*", "12332441251*"), 0.7434),
        (("11", "11"), None),
        (("1*", "*2"), None),
        (("12", "12"), 1.0),
    ],
)
def test_alpha_has_published_values(rows, alpha):
    units = [[value for value in column if value != "*"] for column in zip(*rows, strict=True)]
    found = nominal_alpha(units)
    assert found is None if alpha is None else found == pytest.approx(alpha, abs=5e-5)


def test_alpha_of_votes_does_not_depend_on_sides_or_on_who_wins(study):
    """All raters choose the same run everywhere: agreement is whole, though one answer has all votes."""
    found, votes = study
    agreed = [
        dataclasses.replace(vote, choice=1 if found.run_of[vote.left] == 0 else -1)
        for vote in votes
        if vote.pair in found.compared
    ]
    assert alpha_of_votes(found, agreed, "aesthetics") == (1.0, 16)
    alpha, pairs = alpha_of_votes(found, votes, "aesthetics")
    assert -0.2 < alpha < 0.5 and pairs == 16
    assert alpha_of_votes(found, agreed[:1], "aesthetics") == (None, 0)


def test_the_questions_are_those_of_the_table():
    assert study_files.QUESTIONS == preference.QUESTIONS
