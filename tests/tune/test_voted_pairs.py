"""Tuning on what people prefer: which pairs their votes give, the images and prompts of the pairs, exact resuming."""

import csv
import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from helpers import tuned_runs
from helpers.planted_votes import Planted, draw, keyed, pair_of, votes_of
from rfjax.compare.design import left_and_right
from rfjax.compare.making import Request, make
from rfjax.compare.study_files import VOTE_COLUMNS, read_key, read_study
from rfjax.errors import ConfigError
from rfjax.training.run import open_run
from rfjax.tune import voted_pairs
from rfjax.tune.run import tune_run
from rfjax.votes.winners import find_winners

PLANTED = Planted(strengths=(0.5, -0.5), raters=5, prompts=6, share=1.0)


def test_the_image_with_more_votes_wins_and_what_is_left_out_is_counted(tmp_path):
    """Catches votes on checks, votes of raters who fail them, a tie that counts for an image, winner for loser, and a
    pair that is decided by the side on which it stood."""
    study = keyed(PLANTED, tmp_path)
    votes = [
        vote
        for vote in votes_of(study.asked, draw(PLANTED, 0), lazy=0)
        if vote.pair in study.compared or study.pairs[vote.pair].check.get("right")
    ]
    one = {prompt: study.pairs[pair_of(0, 1, prompt)].images[0] for prompt in range(6)}
    # For each prompt, what the raters r00 to r03 choose: the first image, the second, or neither. r04 fails the checks.
    wanted = ["1112", "2221", "1122", "00..", "2000", "...."]

    def changed(vote):
        if vote.pair not in study.compared:
            return dataclasses.replace(vote, choice=0) if vote.rater == "r04" else vote
        prompt, rater = study.pairs[vote.pair].prompt, int(vote.rater[1:])
        said = "2" if rater == 4 else wanted[prompt][rater]
        choice = {"0": 0, "1": 1, "2": -1}.get(said)
        if choice is None:
            return None
        return dataclasses.replace(vote, choice=choice if vote.left == one[prompt] else -choice)

    found = find_winners(study, filter(None, map(changed, votes)), "aesthetics")
    assert {(won.prompt, won.winner == one[won.prompt]) for won in found.won} == {(0, True), (1, False), (4, False)}
    assert all({won.winner, won.loser} == set(study.pairs[pair_of(0, 1, won.prompt)].images) for won in found.won)
    assert (found.votes, found.ties, found.undecided) == (18, 5, 2)
    said = "\n".join(found.lines())
    assert "3 pairs decided by 13 votes; left out: 5 ties, 2 pairs without a majority, 1 raters" in said
    assert "r04 (6 votes; right in 0 of 6 plain checks); rule: a rater is left out who" in said
    with pytest.raises(ConfigError, match="does not ask the question 'prompt'; it asks aesthetics"):
        find_winners(study, votes, "prompt")


def write_voted(root, prompts, side=16):
    """A study of two folders of images on which one rater voted: always for the image of the folder `good`."""
    rng = np.random.default_rng(0)
    for name in ("good", "bad"):
        (root / name).mkdir(parents=True)
        for place in range(len(prompts)):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{place:05d}.png")
    (root / "prompts.txt").write_text("\n".join(prompts) + "\n")
    sides = (root / "good", root / "bad")
    make(Request(sides=sides, prompts=root / "prompts.txt", out=root / "study", raters=1, questions=("prompt",)), {})
    study = read_study(root / "study")
    key = read_key(root / "study", study)
    with open(root / "study" / "votes" / "r01.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(VOTE_COLUMNS)
        for pair in study.pairs:
            if pair.check is None:
                left, right = left_and_right(study.study, "r01", pair)
                choice = "left" if key.runs[key.images[left].run] == "good" else "right"
                row = (study.study, "r01", pair.pair, "prompt", left, right, choice, 2, "2026-11-27T12:00:00Z")
                writer.writerow(row)
    return root / "study"


@pytest.fixture(scope="module")
def voted(base, tmp_path_factory):
    """(the folder of a study with votes, its prompts)."""
    corpus = open_run(base[0]).corpus
    prompts = list(dict.fromkeys(row["prompt"] for row in corpus.evaluation_prompts(2, 0)))
    return write_voted(tmp_path_factory.mktemp("voted"), prompts), prompts


def test_pairs_have_the_pixels_and_the_texts_of_what_was_voted_on(base, voted):
    """Catches the WebP of a page, the winner for the loser, the prompt of another pair, and a held-out prompt."""
    folder, prompts = voted
    run, held_out = open_run(base[0]), {prompts[1], "not asked"}
    found = voted_pairs.read_pairs(folder, "prompt", held_out)
    assert sorted(found.prompts) == sorted(set(prompts) - held_out)
    assert "1 pairs of held-out prompts left out" in found.lines
    pairs = voted_pairs.to_examples(found, run)
    for place, prompt in enumerate(found.prompts):
        for number, side in enumerate(("good", "bad")):
            image = Image.open(folder.parent / side / f"{prompts.index(prompt):05d}.png")
            latents = run.corpus.to_latents(np.asarray(image, np.float32)[None] / 255)[0]
            np.testing.assert_array_equal(pairs.latents[place, number], latents)
        np.testing.assert_array_equal(pairs.context[place], run.corpus.encode([prompt]).context[0])
    with pytest.raises(
        ConfigError, match="has no pair to learn from: .* pairs of held-out prompts; collect more votes"
    ):
        voted_pairs.read_pairs(folder, "prompt", set(prompts))


def test_large_images_come_from_the_originals_and_it_is_said(tmp_path, base):
    """Catches the lossy WebP of the pages as what is learnt from."""
    folder = write_voted(tmp_path, ["a red circle", "a blue square"], side=256)
    found = voted_pairs.read_pairs(folder, "prompt", set())
    said = found.lines[-1]
    assert said.startswith("raters saw WebP of quality 90; the images to learn from are the originals in ")
    assert str(tmp_path / "bad") in said and str(tmp_path / "good") in said
    with pytest.raises(ConfigError, match=r"is 256 x 256, its latents are \(1, 256, 256, 3\), and the run's are"):
        voted_pairs.to_examples(found, open_run(base[0]))


def test_images_that_changed_or_are_gone_are_named(tmp_path):
    folder = write_voted(tmp_path, ["a red circle", "a blue square"])
    path = tmp_path / "bad" / "00001.png"
    kept = path.read_bytes()
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    with pytest.raises(ConfigError, match="00001.png is not the image that people voted on"):
        voted_pairs.read_pairs(folder, "prompt", set())
    path.write_bytes(kept)
    voted_pairs.read_pairs(folder, "prompt", set())
    (tmp_path / "good").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="where the images of good were; put it back, or correct the side's `given`"):
        voted_pairs.read_pairs(folder, "prompt", set())


def test_steps_go_through_all_pairs_before_any_again(tmp_path):
    tune = tuned_runs.tuning(tmp_path)  # 4 pairs a step
    taken = np.concatenate([voted_pairs.rows_of_pass(tune, 6, step) for step in range(6)])
    assert set(Counter(taken.tolist()).values()) == {4}
    assert sorted(taken[:6]) == sorted(taken[6:12]) == list(range(6)) and taken[:6].tolist() != taken[6:12].tolist()


def test_a_tuning_on_votes_learns_them_and_resumes_with_the_same_pairs_alone(base, voted, tmp_path, capsys):
    """Catches held-out prompts among the pairs, losers as winners, and votes that changed in the middle. Which pairs a
    step takes is a function of the step (above), so exact resuming is that of all tunings."""
    folder, prompts = voted
    more = {"votes.folder": str(folder), "watch.every": 0, "watch.unguided": False, "dpo.beta": 500.0, "steps": 12}
    tune = tuned_runs.tuning(tmp_path, **more)
    tune_run(str(base[0]), tmp_path / "tuned", tune, evaluate=False)
    votes = folder / "votes" / "r01.csv"
    kept = votes.read_text()
    votes.write_text("\n".join(kept.splitlines()[:-1]) + "\n")
    with pytest.raises(ConfigError, match="begun with other pairs of votes: they differ in .*sha256"):
        tune_run(str(base[0]), tmp_path / "tuned", tune, evaluate=False)
    votes.write_text(kept)
    rows = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert np.mean([row["measures"]["margin"] for row in rows[-4:]]) > 0.1
    record = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert record["voted_pairs"]["study"] == read_study(folder).study
    assert 0 < record["voted_pairs"]["pairs"] < len(prompts)
    assert "pairs of held-out prompts left out" in capsys.readouterr().out


def test_votes_are_for_dpo_and_fresh_noise(tmp_path):
    with pytest.raises(ConfigError, match="config.method is nft; pairs of votes are for dpo alone"):
        tuned_runs.tuning(tmp_path, method="nft", **{"votes.folder": "study"})
    with pytest.raises(ConfigError, match="the noise of its images is not known; set config.dpo.noise=fresh"):
        tuned_runs.tuning(tmp_path, **{"votes.folder": "study", "dpo.noise": "own"})
