"""`rfjax compare` from end to end: what it writes, splits and refuses."""

import json
import shutil

import pytest
from PIL import Image

from helpers import tuned_runs
from helpers.image_sides import PROMPTS, write_sides
from rfjax.cli import main
from rfjax.compare.study_files import read_key, read_study


@pytest.fixture
def sides(made, tmp_path, monkeypatch):
    for name in ("zebra-run", "yak-run", "prompts.txt"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["compare", "zebra-run", "yak-run", "--prompts=prompts.txt", "--out=out", "--raters=2"]


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_makes_the_same_bytes_and_keeps_votes(sides, capsys):
    """Catches a page that differs from one call to the next, and votes that are lost by a second call."""
    assert main(COMMAND) == 0
    said = capsys.readouterr().out
    assert "sides: yak-run, zebra-run" in said and "each shown to 2 of 2 raters" in said
    before = content_of(sides / "out")
    assert set(before) == {"study.json", "key.json", "pages/r01.html", "pages/r02.html"}
    (sides / "out" / "votes" / "r01.csv").write_text("mine")
    shutil.rmtree(sides / "out" / "pages")
    assert main(COMMAND) == 0
    assert content_of(sides / "out") == before | {"votes/r01.csv": b"mine"}
    edited = before["study.json"].replace(b"a picture", b"no picture")
    (sides / "out" / "study.json").write_bytes(edited)
    assert main(COMMAND) == 2 and "one of the same id with other pairs" in capsys.readouterr().err
    (sides / "out" / "study.json").write_bytes(before["study.json"])
    assert main([*COMMAND, "--seed=1"]) == 2
    assert "for which its votes do not count; give another --out" in capsys.readouterr().err
    assert content_of(sides / "out") == before | {"votes/r01.csv": b"mine"}


def test_a_large_study_is_split_or_put_beside(sides, capsys):
    big = write_sides(sides / "big", ["one", "two"])
    for path in big.rglob("*.png"):
        Image.effect_noise((320, 320), 200).convert("RGB").save(path)
    shared = ["compare", "big/one", "big/two", "--prompts=big/prompts.txt", "--raters=1", "--quality=100", "--choose=6"]
    assert main([*shared, "--out=split", "--page-mb=1"]) == 0
    pages = sorted((sides / "split" / "pages").iterdir())
    assert [path.name for path in pages] == [f"r01-{n}.html" for n in range(1, len(pages) + 1)] and len(pages) > 1
    assert all(path.stat().st_size <= 1_000_000 for path in pages)
    assert main([*shared, "--out=beside", "--folder"]) == 0
    study = read_study(sides / "beside")
    names = {image for pair in study.pairs for image in pair.images}
    assert {path.stem for path in (sides / "beside" / "pages" / "images").iterdir()} == names
    assert (sides / "beside" / "pages" / "r01.html").stat().st_size < 60_000
    assert "the whole folder pages" in capsys.readouterr().out


def test_the_key_says_where_each_image_came_from(sides):
    assert main([*COMMAND, "--choose=5", "--questions=prompt", "--checks=0"]) == 0
    study = read_study(sides / "out")
    key = read_key(sides / "out", study)
    assert len(study.prompts) == 5 and {q.name for q in study.questions} == {"prompt"} and len(study.pairs) == 5
    for pair in study.pairs:
        for image in pair.images:
            assert key.images[image].source == f"{pair.prompt:05d}.png"
    assert {facts["given"] for facts in key.sides.values()} == {"zebra-run", "yak-run"}
    assert {prompt.prompt for prompt in study.prompts} <= set(PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["compare", "yak-run"], "was given yak-run alone"),
        (["compare", "yak-run", "./yak-run"], "are both called yak-run"),
        (["compare", "yak-run", "nothing"], "no folder at nothing"),
        (["--raters=0"], "--raters is 0; it must be at least 1"),
        (["--checks=2"], "--checks is 2.0; it must be at most 1"),
        (["--checks=nan"], "--checks is nan"),
        (["--pairs=0"], "--pairs is 0"),
        (["--quality=101"], "--quality is 101"),
        (["--page-mb=0.1"], "--page-mb is 0.1; it must be at least 1"),
        (["--questions=beauty"], "--questions has 'beauty'; the questions are aesthetics, prompt, typography"),
        (["--choose=13"], "--choose is 13; it must be at least 1 and at most 12"),
        (["--step=3"], "no side is a run"),
        (["--config.evaluation.sampler.steps=3"], "no side is a run"),
        (["--out=yak-run"], "--out yak-run is what this command reads"),
        (["--prompts=gone.txt"], "--prompts gone.txt cannot be read"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_what_cannot_be_made_is_refused(sides, capsys, change, message):
    words = [*change, *COMMAND[3:]] if change[0] == "compare" else [*COMMAND, *change]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (sides / "out").exists()


def test_images_that_cannot_be_compared_are_refused(sides, capsys):
    write_sides(sides / "other", ["small"], side=16)
    assert main(["compare", "yak-run", "other/small", "--prompts=prompts.txt", "--out=out"]) == 2
    assert "have different sizes" in capsys.readouterr().err
    (sides / "other" / "small" / "00003.png").unlink()
    assert main(["compare", "yak-run", "other/small", "--prompts=prompts.txt", "--out=out"]) == 2
    assert "has no image of 1 of the 12 prompts: 3 ('a picture of thing 3')" in capsys.readouterr().err
    assert not (sides / "out").exists()


def test_a_run_whose_images_have_another_size_is_refused_before_it_is_sampled(sides, capsys):
    """Catches an hour of sampling for a study that cannot be made."""
    tuned_runs.write_base(sides / "run")
    assert main(["compare", "run", "yak-run", "--prompts=prompts.txt", "--out=out"]) == 2
    said = capsys.readouterr().err
    assert "different sizes, by which raters could tell them apart: run 16 x 16, yak-run 32 x 32; sample each" in said
    assert not (sides / "out").exists()


def test_an_image_that_is_damaged_or_empty_is_named(sides, capsys):
    """Catches a study that is half written before its last image is read."""
    write_sides(sides / "other", ["broken"])
    path = sides / "other" / "broken" / "00011.png"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        assert main(["compare", "yak-run", "other/broken", "--prompts=prompts.txt", "--out=out"]) == 2
        assert "00011.png cannot be read" in capsys.readouterr().err
        assert not (sides / "out").exists()


def test_prompts_that_repeat_are_asked_about_once(sides, capsys):
    (sides / "twice.txt").write_text("\n".join([*PROMPTS, PROMPTS[0]]) + "\n")
    assert main([*COMMAND, "--prompts=twice.txt"]) == 0
    assert "1 rows of twice.txt are empty or repeat a prompt: left out" in capsys.readouterr().out
    assert len(json.loads((sides / "out" / "study.json").read_text())["prompts"]) == len(PROMPTS)
