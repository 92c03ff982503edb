"""`rfjax score` with CLIP: CLIP score, distances of features, and their way into the results table."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import scored_runs
from rfjax.cli import main
from rfjax.evaluation.frechet import frechet_distance, moments
from rfjax.evaluation.records import read_records
from rfjax.results import merge
from rfjax.scorers import clip, clip_score, clustered, images
from rfjax.scorers.cmmd import cmmd


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two folders of random pictures of several sizes, with captions beside those of the first."""
    generator = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for name, count in (("made", 7), ("real", 9)):
        (root / name).mkdir()
        for index in range(count):
            size = (*generator.integers(30, 90, 2), 3)
            shade = generator.integers(0, 256, 3)
            Image.fromarray((generator.integers(0, 60, size) + shade).clip(0, 255).astype(np.uint8)).save(
                root / name / f"{index}.png"
            )
            if name == "made":
                (root / name / f"{index}.txt").write_text(f"picture {index // 2}\n")
    return root


@pytest.fixture(scope="module")
def model(clip_folder):
    return clip.load(clip_folder, torch.device("cpu"))


def features_of(model, folder, transform):
    return np.stack(
        [model.embed_images(transform(Image.open(path))[None])[0].numpy() for path in sorted(folder.glob("*.png"))]
    )


def test_clip_score_on_features_by_hand():
    """2.5 max(cos, 0): 1 at cosine 0.4, 0 below zero, whatever the lengths. Catches a scale of 100, and a mean
    that negative cosines lower."""
    seen = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 1.0]])
    said = torch.tensor([[0.4, math.sqrt(1 - 0.16)], [0.0, 5.0], [-1.0, 0.1], [7.0, 0.0]])
    found = clip_score.clip_scores(seen, said).tolist()
    assert found == pytest.approx([1.0, 2.5, 0.0, 2.5 / math.sqrt(2)], abs=1e-6)


def test_its_error_is_over_captions():
    """By hand: residuals -1.5, -0.5, 0.5, 1.5 in captions a, a, b, b sum to -2 and 2. Catches images of one
    caption counted as independent."""
    mean, stderr = clustered.mean_and_stderr([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"])
    assert (mean, stderr) == (2.5, pytest.approx(math.sqrt(2 * 8) / 4))
    assert math.isnan(clustered.mean_and_stderr([1.0, 2.0], ["a", "a"])[1])


def test_clip_score_of_a_folder(pictures, clip_folder, model, tmp_path, capsys):
    """Against the definition on transformers' own features. Catches the prefix lost, captions of other images, and
    another model's score under CLIPScore's name."""
    out = tmp_path / "out"
    command = [
        "score",
        str(pictures / "made"),
        "--metric=clip-score",
        f"--clip={clip_folder}",
        f"--out={out}",
        "--batch-size=3",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    scores = []
    with torch.no_grad():
        for index in range(7):
            tokens = model.tokenizer([f"A photo depicts picture {index // 2}"], return_tensors="pt")
            said = model.model.get_text_features(**tokens).pooler_output[0]
            seen = model.model.get_image_features(
                images.clip_transform(Image.open(pictures / f"made/{index}.png"))[None]
            ).pooler_output[0]
            scores.append(2.5 * max(float(torch.cosine_similarity(seen, said, dim=0)), 0))
    assert 0 in scores and max(scores) > 0.5  # both sides of zero
    assert f"CLIP score {np.mean(scores):.4f}" in printed and "(standard error over 4 captions)" in printed
    assert "NOT the metric's own model" in printed
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-5)
    # Another caption, and only its image is scored again.
    given = {str(index): f"picture {index // 2}" for index in range(7)} | {"6.png": "something else"}
    (tmp_path / "captions.json").write_text(json.dumps(given))
    assert main([*command, f"--captions={tmp_path / 'captions.json'}"]) == 0
    assert len((out / "rows.jsonl").read_text().splitlines()) == 8
    del given["3"]
    (tmp_path / "captions.json").write_text(json.dumps(given))
    assert main([*command, f"--captions={tmp_path / 'captions.json'}"]) == 2
    assert "the image 3.png has no caption" in capsys.readouterr().err


def test_a_long_caption_keeps_its_end(model):
    """CLIP's embedding is taken at the end mark. Catches a text cut without it, and one that crashes."""
    ids = model.tokenizer("word " * 200, truncation=True, max_length=77)["input_ids"]
    assert len(ids) == 77 and ids[-1] == model.tokenizer.eos_token_id
    one, other = model.embed_texts(["word " * 200, "word " * 300])
    assert torch.allclose(one, other)


@pytest.mark.parametrize(
    "kind, transform, distance",
    [
        ("fid-clip", images.clip_transform, lambda a, b: frechet_distance(moments(a), moments(b))),
        ("cmmd", lambda image: images.cmmd_transform(image, 224), cmmd),
    ],
)
def test_distances_of_folders(pictures, clip_folder, model, tmp_path, capsys, kind, transform, distance):
    """The verb's distance equals the definition on features taken one by one; a folder is at 0 from itself; stored
    features can replace their folder. Catches features of other pixels, and unit vectors in FID."""

    def measure(*paths):
        return main(
            [
                "score",
                *map(str, paths[:1]),
                f"--metric={kind}",
                f"--reference={paths[1]}",
                f"--out={tmp_path / 'out'}",
                *paths[2:],
            ]
        )  # noqa: E731, E501

    assert measure(pictures / "made", pictures / "real") == 2
    assert "needs --clip" in capsys.readouterr().err
    assert measure(pictures / "made", pictures / "real", f"--clip={clip_folder}", "--batch-size=2") == 0
    made, real = (features_of(model, pictures / name, transform).astype(np.float64) for name in ("made", "real"))
    if kind == "cmmd":
        made, real = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (made, real))
    wanted = float(distance(made, real))
    printed = capsys.readouterr().out
    assert wanted > 0 and f"{kind} " in printed and "NOT the metric's own model" in printed
    assert float(printed.split()[1].rstrip(":")) == pytest.approx(wanted, rel=1e-3)
    assert "7 images against 9" in printed
    assert ("biased by the number of images, 7" in printed) == (kind == "fid-clip")
    kept = [tmp_path / "out" / name / "features.npz" for name in ("images", "reference")]
    assert measure(*kept) == 0
    assert float(capsys.readouterr().out.split()[1].rstrip(":")) == pytest.approx(wanted, rel=1e-3)
    assert measure(kept[1], pictures / "real", f"--clip={clip_folder}") == 0
    assert float(capsys.readouterr().out.split()[1].rstrip(":")) == pytest.approx(0, abs=1e-3)


def test_a_score_becomes_a_column(pictures, clip_folder, tmp_path, capsys):
    """A record has the run's spending, the models' hashes, sampler and seed. Another seed makes another row, the same
    seed replaces it. Catches a record that the table cannot read, and a variant in the metric's own column."""
    run = scored_runs.write(tmp_path / "point")
    command = ["score", str(pictures / "made"), f"--clip={clip_folder}", f"--out={tmp_path / 'out'}"]
    about = [f"--run={run}", "--step=100", "--sampler=euler-20-cfg4-shift1"]
    for seed in (5, 5, 6):
        assert main([*command, "--metric=clip-score", *about, f"--seed={seed}", "--corpus=coco"]) == 0
    found = [record for record in read_records(run) if record["key"]["evaluation"] == "clip-score-other-model"]
    assert [record["key"]["seed"] for record in found] == [5, 6]
    record = found[0]
    assert {name: record[name] for name in scored_runs.SPENT} == scored_runs.SPENT
    assert record["values"][0]["n"] == 7 and record["extra"]["models"]["clip"]["sha256"] == clip.content_hash(
        clip_folder
    )
    assert (
        main(
            [
                *command,
                "--metric=cmmd",
                f"--reference={pictures / 'real'}",
                f"--out={tmp_path / 'distance'}",
                *about,
                "--seed=5",
            ]
        )
        == 0
    )
    wide = merge.collect([run], tmp_path / "results").wide
    row = wide[(wide["corpus"] == "coco") & (wide["sampler_seed"] == 5)].iloc[0]
    assert row["clip_score_other_model"] == record["values"][0]["value"]
    assert row["clip_score_other_model_n"] == 7 and row["flops"] == 1.5e12
    assert wide[wide["corpus"] == "real"]["cmmd_other_model"].notna().all()

    for wrong, message in (
        ([f"--run={run}", "--step=100", "--seed=1"], "--run needs --sampler"),
        (["--seed=1"], "give --run as well"),
        ([f"--run={tmp_path}", "--step=100", "--seed=1", "--sampler=x"], "not a run's folder"),
        ([f"--run={run}", "--step=99", "--seed=1", "--sampler=x"], "no checkpoint"),
    ):
        capsys.readouterr()
        assert main([*command, "--metric=clip-score", *wrong]) == 2
        assert message in capsys.readouterr().err


def test_images_say_themselves_what_made_them(pictures, clip_folder, tmp_path, capsys):
    """`generation.json`, as `rfjax sample --prompts` leaves it. Catches a score under another run, step or seed."""
    run, made = scored_runs.write(tmp_path / "point"), tmp_path / "made"
    shutil.copytree(pictures / "made", made)
    facts = {"run": "point", "step": 100, "weights": "raw", "sampler": "euler-20-cfg4-shift1-3x2", "seed": 3}
    (made / "generation.json").write_text(json.dumps(facts))
    command = ["score", str(made), "--metric=clip-score", f"--clip={clip_folder}", f"--run={run}"]
    assert main(command) == 0
    key = next(one for one in read_records(run) if one["key"]["evaluation"] != "validation")["key"]
    assert {name: key[name] for name in facts} == facts
    assert main([*command, "--seed=4"]) == 2
    assert "--seed is 4, and the images" in capsys.readouterr().err
    (made / "generation.json").write_text(json.dumps(facts | {"run": "another"}))
    assert main(command) == 2
    assert "--run is 'point', and the run 'another' made the images" in capsys.readouterr().err


def test_one_process_at_a_time(pictures, clip_folder, tmp_path, capsys):
    """Catches two processes that add to the same rows."""
    from rfjax.scorers.rows import Rows

    loaded = clip.load(clip_folder, torch.device("cpu"))
    settings = {
        "metric": "clip-score",
        "clip": f"{loaded.name} {loaded.sha256}",
        "prefix": "A photo depicts ",
        "weight": 2.5,
    }
    command = [
        "score",
        str(pictures / "made"),
        "--metric=clip-score",
        f"--clip={clip_folder}",
        f"--out={tmp_path / 'out'}",
    ]
    with Rows(tmp_path / "out", settings):
        assert main(command) == 2
    assert "another process is scoring" in capsys.readouterr().err
    assert main(command) == 0


def test_captions_without_an_image_are_counted(tmp_path, capsys):
    """Catches a score over half the captions of a file, in silence."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "captions.json").write_text(json.dumps({"a.png": "a cat", "b.png": "a dog", "c": "a cup"}))
    captions, left_out = clip_score.captions_of(tmp_path, tmp_path / "captions.json")
    assert captions == {"a.png": "a cat"} and left_out == {"captions of captions.json without an image": 2}
    assert "b.png, c" in capsys.readouterr().err
