"""`rfjax score --metric=geneval` on a folder in the official layout, with small random models."""

import functools
import json
import math
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from helpers import scored_runs
from rfjax.cli import main
from rfjax.data.geneval_names import COLORS
from rfjax.evaluation.image_folders import geneval_folder
from rfjax.evaluation.records import read_records
from rfjax.results import merge
from rfjax.scorers import clip, geneval_images, mask2former
from rfjax.scorers.colors import ColorClassifier, cut_out
from rfjax.scorers.object_names import OBJECT_NAMES

SIZE = 48


def picture(index):
    generator = np.random.default_rng(index)
    image = Image.new("RGB", (SIZE, SIZE), tuple(generator.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, w, h = generator.integers(0, SIZE // 2, 4).tolist()
        draw.rectangle((x, y, x + w, y + h), fill=tuple(generator.integers(0, 256, 3).tolist()))
    return image


@pytest.fixture(scope="module")
def seen(detector_folder):
    """What the detector sees in each of eight pictures: {class: [(score, box, mask), ...], best first}."""
    detector = mask2former.load(detector_folder, torch.device("cpu"))
    found = []
    for instances in detector([picture(index) for index in range(8)]):
        objects = defaultdict(list)
        for label, score, box, mask in zip(*instances, strict=True):
            objects[OBJECT_NAMES[label]].append((float(score), box.tolist(), mask.numpy()))
        found.append({name: sorted(items, key=lambda item: -item[0]) for name, items in objects.items()})
    return found


@pytest.fixture(scope="module")
def colors_of(clip_folder):
    """The colour of an object by the published recipe, step by step on the model itself."""
    model = clip.load(clip_folder, torch.device("cpu"))

    @functools.cache
    def vector_of(text):
        vector = model.model.get_text_features(**model.tokenizer([text], return_tensors="pt")).pooler_output[0]
        return vector / vector.norm()

    def classify(image, box, mask, name):
        grey = Image.new("RGB", image.size, (0x99, 0x99, 0x99))
        grey.paste(image, mask=Image.fromarray(mask))
        crop = grey.crop(box)
        size = tuple(224 if side == min(crop.size) else int(side * 224 / min(crop.size)) for side in crop.size)
        crop = crop.resize(size, Image.BICUBIC)
        left, top = (int(round((side - 224) / 2.0)) for side in size)
        values = np.asarray(crop.crop((left, top, left + 224, top + 224)), np.float32) / 255
        values = (values - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
        with torch.no_grad():
            inputs = torch.from_numpy(values).permute(2, 0, 1).float()[None]
            seen = model.model.get_image_features(inputs).pooler_output[0]
            scores = []
            for color in COLORS:
                texts = [
                    f"a photo of a {color} {name}",
                    f"a photo of a {color}-colored {name}",
                    f"a photo of a {color} object",
                ]
                mean = torch.stack([vector_of(text) for text in texts]).mean(0)
                scores.append(float(seen @ mean / mean.norm()))
        return COLORS[int(np.argmax(scores))]

    return classify


@pytest.fixture(scope="module")
def truth(seen, colors_of):
    """(rows, {(row, sample): correct}), so that both outcomes come up, by the rules in words."""

    def above(image, name, threshold):
        return [item for item in seen[image].get(name, []) if np.float32(item[0]) > np.float32(threshold)][:16]

    best = [max(objects, key=lambda name: objects[name][0][0]) for objects in seen]
    colors = {image: colors_of(picture(image), *above(image, best[image], 0.3)[0][1:], best[image]) for image in (2, 6)}
    other = next(name for name in COLORS if name != colors[6])
    rows = [
        {"tag": "single_object", "include": [{"class": best[0], "count": 1}], "prompt": f"a photo of a {best[0]}"},
        {
            "tag": "colors",
            "include": [{"class": best[2], "count": 1, "color": colors[2]}],
            "prompt": f"a photo of a {colors[2]} {best[2]}",
        },
        {
            "tag": "counting",
            "include": [{"class": best[4], "count": 1}],
            "exclude": [{"class": best[4], "count": 2}],
            "prompt": f"a photo of one {best[4]}",
        },
        {
            "tag": "colors",
            "include": [{"class": best[6], "count": 1, "color": other}],
            "prompt": f"a photo of a {other} {best[6]}",
        },
    ]
    correct = {}
    for index, row in enumerate(rows):
        for sample in range(2):
            image = 2 * index + sample
            item = row["include"][0]
            objects = above(image, item["class"], 0.9 if row["tag"] == "counting" else 0.3)
            ok = len(objects) >= 1
            if ok and "color" in item:
                ok = colors_of(picture(image), objects[0][1], objects[0][2], item["class"]) == item["color"]
            if "exclude" in row:
                ok = ok and len(objects) < 2
            correct[index, sample] = ok
    assert len(set(correct.values())) == 2
    return rows, correct


@pytest.fixture
def images(truth, tmp_path):
    """The folder in the official layout."""
    folder = tmp_path / "images"
    for index, row in enumerate(truth[0]):
        place = folder / f"{index:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(row))
        for sample in range(2):
            picture(2 * index + sample).save(place / "samples" / f"{sample:04d}.png")
        picture(99).save(place / "grid.png")
    (folder / "notes").mkdir()
    (folder / "00000" / "samples" / "thumb.png").write_bytes(b"passed over")
    return folder


@pytest.fixture
def score(images, detector_folder, clip_folder):
    def run(*more):
        return main(
            [
                "score",
                str(images),
                "--metric=geneval",
                f"--detector={detector_folder}",
                f"--clip={clip_folder}",
                "--device=cpu",
                *more,
            ]
        )

    return run


def official_summary(path):
    """The rules of the official summary script, from its description: % of images, % of prompts with any
    image right (grouped by the metadata's text), the mean per tag, and the unweighted mean of those."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    prompts, tags = defaultdict(list), defaultdict(list)
    for row in rows:
        assert isinstance(row["correct"], bool)
        prompts[row["metadata"]].append(row["correct"])
        tags[row["tag"]].append(row["correct"])
    tasks = {tag: sum(values) / len(values) for tag, values in tags.items()}
    return {
        "images": len(rows),
        "prompts": len(prompts),
        "correct_images": sum(row["correct"] for row in rows) / len(rows),
        "correct_prompts": sum(any(values) for values in prompts.values()) / len(prompts),
        "tasks": tasks,
        "overall": sum(tasks.values()) / len(tasks),
    }


def test_the_whole_verb(score, images, truth, seen, capsys):
    """Catches an image judged under another prompt, colours of the wrong pixels, a results file that the
    official summary reads otherwise than ours, and a score of other models called GenEval's."""
    assert score() == 0
    out = images.with_name("images.geneval")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["filename"] for row in rows] == [f"{i:05d}/samples/{j:04d}.png" for i in range(4) for j in range(2)]
    assert [row["correct"] for row in rows] == [truth[1][i, j] for i in range(4) for j in range(2)]
    for place, row in enumerate(rows):
        assert set(row) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
        assert json.loads(row["metadata"]) == truth[0][place // 2]
        assert bool(row["reason"]) != row["correct"]
        limit = 0.9 if row["tag"] == "counting" else 0.3
        wanted = {name: [[*box, s] for s, box, _ in items if s > limit] for name, items in seen[place].items()}
        found = json.loads(row["details"])
        assert found.keys() == {name for name, items in wanted.items() if items}
        for name, boxes in found.items():
            assert np.allclose(boxes, wanted[name][:16], atol=1e-5)
    summary = json.loads((out / "results.summary.json").read_text())
    official = official_summary(out / "results.jsonl")
    assert summary["overall"]["value"] == pytest.approx(official["overall"], abs=1e-12)
    assert {tag: task["value"] for tag, task in summary["tasks"].items()} == pytest.approx(official["tasks"], abs=1e-12)
    for name in ("correct_images", "correct_prompts"):
        assert summary[name] == pytest.approx(official[name], abs=1e-12)
    assert (summary["overall"]["images"], summary["overall"]["prompts"]) == (official["images"], official["prompts"])
    printed = capsys.readouterr().out
    assert "GenEval (other models)" in printed
    assert printed.count("NOT the official protocol") == 4  # prompts, images a prompt, detector, CLIP


def test_a_score_becomes_columns(score, images, truth, tmp_path, monkeypatch):
    """The table has the score per task and overall, with intervals, under the evaluation's own name, and GenEval's
    prompt by prompt. Catches a variant's score in GenEval's columns, and models that the record does not name."""
    run = scored_runs.write(tmp_path / "point")
    about = [f"--run={run}", "--step=100", "--sampler=euler-50-cfg5-shift3", "--seed=7", f"--out={tmp_path / 'out'}"]
    assert score(*about) == 0
    record = next(one for one in read_records(run) if one["key"]["evaluation"] == "geneval_other_models")
    assert record["key"]["corpus"] == f"geneval-{geneval_folder.read(images).sha256[:8]}"
    assert set(record["extra"]["models"]) == {"detector", "clip"} and len(record["extra"]["deviations"]) == 4
    assert all(len(model["sha256"]) == 64 for model in record["extra"]["models"].values())
    made = merge.collect([run], tmp_path / "results")
    row = made.wide[made.wide["sampler_seed"] == 7].iloc[0]
    official = official_summary(tmp_path / "out" / "results.jsonl")
    assert row["geneval_other_models_overall"] == pytest.approx(official["overall"], abs=1e-12)
    assert row["geneval_other_models_colors"] == pytest.approx(official["tasks"]["colors"], abs=1e-12)
    assert row["geneval_other_models_overall_n"] == 8 and row["images"] == scored_runs.SPENT["images"]
    assert set(made.prompts["evaluation"]) == {"geneval_other_models"} and len(made.prompts) == 4

    # As if these were the official models and prompts.
    monkeypatch.setitem(geneval_images.KINDS, "other", geneval_images.KINDS["official"])
    monkeypatch.setattr(geneval_folder, "OFFICIAL_SHA256", geneval_folder.read(images).sha256)
    assert score(*about) == 0
    made = merge.collect([run], tmp_path / "results")
    assert set(made.wide["geneval_official_overall"].dropna()) == {row["geneval_other_models_overall"]}
    prompts = made.prompts[made.prompts["evaluation"] == "geneval_official"]
    assert set(prompts["corpus"]) == {"geneval"} and len(prompts) == 4 and len(made.prompts) == 8
    assert prompts["correct"].sum() == sum(truth[1].values())


def test_going_on_scores_only_what_is_left(score, images, monkeypatch, truth):
    """A stop after the first batch, a torn last line, an image made anew: the same command does what is
    left and gives the same bytes. Catches rows lost, doubled, or kept for pixels that are gone."""
    whole, part = images.with_name("whole"), images.with_name("part")
    assert score(f"--out={whole}") == 0
    looked_at = []
    detect = mask2former.Detector.__call__

    def counted(self, pictures):
        looked_at.append(len(pictures))
        if len(looked_at) == 2 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return detect(self, pictures)

    stopped = []
    monkeypatch.setattr(mask2former.Detector, "__call__", counted)
    assert score(f"--out={part}", "--batch-size=3") == 130
    assert not (part / "results.jsonl").exists()
    with open(part / "rows.jsonl", "a") as file:
        file.write('{"image": "00003/samples/0001.png", "corr')
    looked_at.clear()
    assert score(f"--out={part}", "--batch-size=3") == 0
    assert sum(looked_at) == 5
    assert (part / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()

    looked_at.clear()
    picture(6).save(images / "00000/samples/0001.png")  # another picture under an old name
    assert score(f"--out={part}") == 0
    assert looked_at == [1]


def test_other_settings_do_not_go_on_from_these(score, images, tmp_path, capsys, truth):
    """Catches rows of two detectors in one score, and images under another prompt than they were made for."""
    from helpers import tiny_scorers

    assert score() == 0
    tiny_scorers.mask2former(seed=9).save_pretrained(tmp_path / "another")
    assert score(f"--detector={tmp_path / 'another'}") == 2
    assert "was begun with detector 'other" in capsys.readouterr().err
    changed = truth[0][1] | {"prompt": "a photo of something else"}
    (images / "00001/metadata.jsonl").write_text(json.dumps(changed))
    assert score() == 2
    assert "scored under another prompt" in capsys.readouterr().err


def test_the_metadata_file_is_held_against_the_folder(score, images, truth, tmp_path, capsys, monkeypatch):
    """The file's rows are the prompts, and the official file is known by its hash. Catches images of other prompts, and
    prompts without images, scored as if nothing were wrong."""
    file = tmp_path / "metadata.jsonl"
    lines = [json.dumps(row) + "\n" for row in truth[0]]
    file.write_text("".join(reversed(lines)))
    assert score(f"--metadata={file}") == 2
    assert "give the metadata of these images" in capsys.readouterr().err
    file.write_text("".join(lines) + json.dumps(truth[0][0] | {"prompt": "one more"}) + "\n")
    assert score(f"--metadata={file}") == 2
    assert "lacks every image of 1 metadata row (4)" in capsys.readouterr().err
    (images / "00002/samples/0001.png").rename(images / "00002/samples/0001.png.bak")
    file.write_text("".join(lines))
    assert score(f"--metadata={file}") == 2
    assert "lacks 1 single image (2/1)" in capsys.readouterr().err
    assert score(f"--metadata={file}", "--allow-missing") == 0
    assert "images are missing" in capsys.readouterr().out
    assert geneval_folder.read(images, file).sha256 == geneval_folder.read(images).sha256
    monkeypatch.setattr(geneval_folder, "OFFICIAL_SHA256", geneval_folder.read(images).sha256)
    assert geneval_folder.read(images).official


def test_whose_score_it_is():
    """Catches the variant under GenEval's own name: the table must keep them in columns of their own."""
    names = {kind: name for kind, (name, _) in geneval_images.KINDS.items()}
    assert len(set(names.values())) == 3
    assert geneval_images.KINDS["hf"][1] == "GenEval (HF Mask2Former weights)"
    assert geneval_images.KINDS["official"][1] == "GenEval"


def test_colours_are_of_the_masked_pixels(clip_folder, colors_of):
    """Compared with the recipe on the model itself, for objects at the edge and one pixel wide. Catches a box or a
    ground of other pixels, templates in another order, and a mean that is not made a unit vector."""
    classifier = ColorClassifier(clip.load(clip_folder, torch.device("cpu")))
    image = picture(5)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[10:30, 20:SIZE] = True
    mask[12:14, 25:30] = False
    box = np.array([20, 10, SIZE, 30])
    cut = np.asarray(cut_out(image, box, mask))
    assert cut.shape == (20, 28, 3)
    assert (cut[2:4, 5:10] == 0x99).all()
    assert (cut[0] == np.asarray(image)[10, 20:]).all()
    thin = np.zeros((SIZE, SIZE), bool)
    thin[3:40, 7] = True
    objects = [(box, mask), (np.array([7, 3, 8, 40]), thin)]
    for name in ("bus", "wine glass"):
        found = classifier(image, np.stack([b for b, _ in objects]), [m for _, m in objects], name)
        assert list(found) == [colors_of(image, b.tolist(), m, name) for b, m in objects]
    weights = classifier.weights("bus")
    assert weights.norm(dim=1).tolist() == pytest.approx([1.0] * 10, abs=1e-6)
    assert not math.isclose(float(weights[0] @ weights[1]), 1.0)


def test_clip_without_quickgelu_is_refused(clip_folder, tmp_path):
    """Catches the config that runs plain GELU without a word, and other colours with it."""
    import shutil

    shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((tmp_path / "clip/config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "clip/config.json").write_text(json.dumps(config))
    with pytest.raises(clip.ConfigError, match="vision_config.hidden_act 'gelu'"):
        clip.load(tmp_path / "clip", torch.device("cpu"))


def test_images_that_cannot_be_scored_are_named(score, images, capsys):
    """Catches a crash without the file's name, and sixteen bits cut to eight."""
    bad = images / "00001/samples/0000.png"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    assert score() == 2
    assert f"cannot read the image {bad}" in capsys.readouterr().err
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(bad)
    assert score() == 2
    assert "eight bits a channel" in capsys.readouterr().err


def test_help_and_refusals_need_no_torch(images):
    """Catches torch imported before it is known to be wanted, here or by training."""
    script = (
        "import sys; sys.modules['torch'] = sys.modules['jax'] = None; from rfjax.cli import main; "
        f"sys.exit(main(['score', {str(images)!r}, '--metric=geneval']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "needs --detector" in done.stderr
