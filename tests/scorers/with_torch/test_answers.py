"""`rfjax score` with a vision-language model that answers questions, and PickScore: tiny models of the real classes."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, LlavaForConditionalGeneration, LlavaProcessor

from helpers import child_process, scored_runs, tiny_captioners, tiny_scorers
from rfjax.cli import main
from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records
from rfjax.results import merge
from rfjax.scorers import images, questions, vqa

SPOKEN = (
    "Yes yes No no four Four 4 Please answer Answer in one word. Does this figure show Is Are there How many".split()
)
DPG = """\
item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
p0,a red cat,,1,0,entity,whole,entity - whole (cat),Is there a cat
p0,a red cat,,2,1,attribute,color,"attribute - color (cat, red)",Is the cat red
p1,a dog,,1,0,entity,whole,entity - whole (dog),Is there a dog
"""
CAPTIONS = ("a red cat", "a dog")


def write_geneval2(path):
    rows = [
        {
            "prompt": caption,
            "atom_count": 1,
            "vqa_list": [["How many cat", "four"], ["Is there a cat", "Yes"]],
            "skills": ["count", "object"],
        }
        for caption in CAPTIONS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# metric -> (its model, how its question file is written; None: it has none)
WHOLE = {
    "vqascore": ("vqa", None),
    "geneval2": ("vqa", write_geneval2),
    "dpg": ("vqa", lambda path: path.write_text(DPG)),
    "pickscore": ("clip", None),
}
KILLED = """
import os, signal, sys
from rfjax.cli import main
from rfjax.scorers.rows import Rows
add, calls = Rows.add, []
def killed(self, rows):
    add(self, rows)
    calls.append(1)
    if len(calls) == 2:
        path = self.folder / "rows.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
        os.kill(os.getpid(), signal.SIGKILL)
Rows.add = killed
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny_captioners.save_llava(root / "llava", more_words=dict.fromkeys(SPOKEN))
    tiny_captioners.save_blip(root / "blip", more_words=dict.fromkeys(word.lower() for word in SPOKEN))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Forty images of two prompts, each with its caption beside it."""
    folder, generator = tmp_path_factory.mktemp("made") / "images", np.random.default_rng(0)
    folder.mkdir()
    for index in range(40):
        size = (*generator.integers(30, 60, 2), 3)
        pixels = (generator.integers(0, 60, size) + generator.integers(0, 256, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(CAPTIONS[index % 2])
    return folder


def by_hand(folder, kind, path, question, words):
    """The probability of each word as the first that the model writes, without the scorer's code or batches."""
    image = images.read(path)
    with torch.inference_mode():
        if kind == "llava":
            model, processor = (
                LlavaForConditionalGeneration.from_pretrained(folder),
                LlavaProcessor.from_pretrained(folder),
            )
            inputs = processor(images=image, text=f"user <image> {question} assistant ", return_tensors="pt")
            logits = model(**inputs).logits[0, -1]
        else:
            model, processor = (
                BlipForConditionalGeneration.from_pretrained(folder),
                BlipProcessor.from_pretrained(folder),
            )
            inputs = processor(images=image, text=question, return_tensors="pt")
            states = model.vision_model(inputs.pixel_values).last_hidden_state
            ids = inputs.input_ids[:, :-1]  # without the end token
            ids[0, 0] = model.config.text_config.bos_token_id
            logits = model.text_decoder(input_ids=ids, encoder_hidden_states=states).logits[0, -1]
        chances = logits.double().softmax(-1)
    return [float(sum(chances[processor.tokenizer.convert_tokens_to_ids(w)] for w in each)) for each in words]


@pytest.mark.parametrize("kind, yes, no", [("llava", ("Yes", "yes"), ("No", "no")), ("blip", ("yes",), ("no",))])
def test_the_probability_is_that_of_the_first_token(models, made, kind, yes, no):
    """Catches the logits of another place, padding on the wrong side, a spelling that is counted twice, and answers of
    another image in the batch."""
    model = vqa.load(models / kind, torch.device("cpu"))
    paths = sorted(made.glob("*.png"))[:3]
    asked = [
        "Is there a cat Please answer yes",
        "Is the cat red and old in the photo Please answer yes",
        "Is there a dog",
    ]
    asked = [question.lower() for question in asked] if kind == "blip" else asked
    answers = [(questions.YES, questions.NO)] * 3
    found = model.probabilities([images.read(path) for path in paths], asked, answers)
    expected = [by_hand(models / kind, kind, *pair, (yes, no)) for pair in zip(paths, asked, strict=True)]
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5 and np.std(expected) > 1e-3


def score(made, models, out, metric, *words, model="llava"):
    return main(["score", str(made), f"--metric={metric}", f"--vqa={models / model}", f"--out={out}", *map(str, words)])


def test_dpg_of_forty_images_into_the_table(models, made, tmp_path, capsys):
    """End to end, killed and given again. Catches answers to other questions, gates that are not applied, images asked
    twice, another model's score under DPG's name, and a record without hashes."""
    file, run = tmp_path / "dpg_bench.csv", scored_runs.write(tmp_path / "run")
    file.write_text(DPG)
    record = (f"--run={run}", "--step=100", "--sampler=euler-50", "--seed=0", "--corpus=shapes")
    words = (f"--questions={file}", "--batch-size=16", *record)
    assert score(made, models, tmp_path / "out", "dpg", *words) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    expected = []
    for row in rows:
        yes = [one > other for one, other in row["answers"]]
        expected.append(np.mean([yes[0], yes[0] and yes[1]]) if len(yes) == 2 else yes[0])
    (found,) = [one for one in read_records(run) if one["key"]["evaluation"].startswith("dpg")]
    name, sha256 = found["key"]["evaluation"], found["extra"]["models"]["vqa"]["sha256"]
    assert name == f"dpg_by_llava-{sha256[:8]}" and "published scores are by mPLUG-large" in printed
    values = {value["item"]: value for value in found["values"]}
    assert values["overall"]["value"] == pytest.approx(np.mean(expected)) and values["overall"]["n"] == 40
    assert set(values) == {"overall", "entity", "attribute"} and len(found["extra"]["questions"]["sha256"]) == 64
    wide = merge.collect([run], tmp_path / "results").wide
    assert wide[f"{name}_overall"].dropna().tolist() == [values["overall"]["value"]]
    # killed after some rows: the rest is asked, to the same numbers
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "out", half)
    lines = (half / "rows.jsonl").read_text().splitlines(keepends=True)
    (half / "rows.jsonl").write_text("".join(lines[:15]) + lines[15][:30])
    assert score(made, models, half, "dpg", *words) == 0
    again = [json.loads(line) for line in (half / "rows.jsonl").read_text().splitlines()]
    assert [row["image"] for row in again] == [row["image"] for row in rows]
    assert np.abs(np.array([r["answers"][0] for r in again]) - np.array([r["answers"][0] for r in rows])).max() < 1e-6
    # another model is refused in that folder
    assert score(made, models, half, "dpg", *words, model="blip") == 2
    assert "was begun with model" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("metric", WHOLE)
def test_killed_while_a_row_is_written_and_given_again_it_ends_in_the_same_record(models, made, tmp_path, metric):
    """SIGKILL in the second of four batches of forty images, with its last line torn. Catches a torn line that stops
    the command or counts, images that are scored twice or not at all, and a record without its models' hashes."""
    needs, questions_of = WHOLE[metric]
    folder = models / "llava" if needs == "vqa" else tiny_scorers.clip(tmp_path / "PickScore", activation="gelu")
    words = ["score", str(made), f"--metric={metric}", f"--{needs}={folder}", "--batch-size=10"]
    words += ["--step=100", "--sampler=euler-50", "--seed=0", "--corpus=shapes"]
    if questions_of:
        questions_of(tmp_path / "questions.csv")
        words.append(f"--questions={tmp_path / 'questions.csv'}")
    found = {}
    for name in ("undisturbed", "killed"):
        run, out = scored_runs.write(tmp_path / name), tmp_path / f"{name}-out"
        given = [*words, f"--run={run}", f"--out={out}"]
        if name == "killed":
            command = [sys.executable, "-c", KILLED, *given]
            done = subprocess.run(command, env=child_process.environment(), capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
            assert 0 < (out / "rows.jsonl").read_text().count("\n") < 30
        assert main(given) == 0
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        (record,) = [each for each in read_records(run) if each["key"]["evaluation"] != "validation"]
        found[name] = rows, record
    (whole, expected), (rows, record) = found["undisturbed"], found["killed"]
    assert [row["image"] for row in rows] == [row["image"] for row in whole] and len(rows) == 40
    assert record["key"] == expected["key"] and record["extra"] == expected["extra"]
    for value, other in zip(record["values"], expected["values"], strict=True):
        for name, number in other.items():
            near = isinstance(number, float)  # batches of other images differ in the last bits
            assert value[name] == (pytest.approx(number, abs=1e-6, nan_ok=True) if near else number)
    assert len(record["extra"]["models"][needs]["sha256"]) == 64
    assert bool(questions_of) == bool(record["extra"].get("questions", {}).get("sha256"))


def test_images_named_by_item_need_no_captions(models, made, tmp_path, capsys):
    """DPG's own layout: ITEM.png. Catches a folder without captions refused, and prompts without images passed over."""
    folder, file = tmp_path / "images", tmp_path / "dpg.csv"
    folder.mkdir()
    file.write_text(DPG)
    shutil.copy(made / "00.png", folder / "p1.png")
    assert score(folder, models, tmp_path / "out", "dpg", f"--questions={file}") == 2
    assert "1 of 2 prompts" in capsys.readouterr().err
    assert score(folder, models, tmp_path / "out", "dpg", f"--questions={file}", "--allow-missing") == 0
    assert "1 images of 1 prompts" in capsys.readouterr().out


def test_geneval2_and_vqascore_of_a_folder(models, made, tmp_path, capsys):
    """Catches VQAScore asked of another caption, and GenEval 2's means of other answers."""
    write_geneval2(tmp_path / "geneval2_data.jsonl")
    words = (f"--questions={tmp_path / 'geneval2_data.jsonl'}", "--batch-size=32")
    assert score(made, models, tmp_path / "g", "geneval2", *words) == 0
    assert score(made, models, tmp_path / "v", "vqascore", "--batch-size=32") == 0
    assert "GenEval 2 by llava: 40 images of 2 prompts" in capsys.readouterr().out
    found = {
        name: [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()] for name in "gv"
    }
    for index in (0, 7):
        path, caption = made / f"{index:02}.png", CAPTIONS[index % 2]
        count = by_hand(models / "llava", "llava", path, "How many cat Answer in one word.", [("four", "Four", "4")])
        assert found["g"][index]["answers"][0][0] == pytest.approx(count[0], abs=1e-5)
        asked = f'Does this figure show "{caption}"? Please answer yes or no.'
        assert found["v"][index]["answers"] == [
            pytest.approx(by_hand(models / "llava", "llava", path, asked, [("Yes", "yes"), ("No", "no")]), abs=1e-5)
        ]


def test_what_cannot_answer_is_refused_by_name(models, made, tmp_path, clip_folder):
    """Catches a traceback, and a message that does not say which kinds there are."""
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"is a CLIPModel \(clip\); --vqa takes one of the kinds .*llava.*qwen3_vl"):
        vqa.load(clip_folder, cpu)
    with pytest.raises(ConfigError, match="no folder of a model"):
        vqa.load(tmp_path / "none", cpu)
    shutil.copytree(models / "llava", tmp_path / "half")
    (tmp_path / "half" / "preprocessor_config.json").unlink(missing_ok=True)
    (tmp_path / "half" / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="no processor of images and text"):
        vqa.load(tmp_path / "half", cpu)
    model = vqa.load(models / "llava", cpu)
    with pytest.raises(ConfigError, match="has no token for 'purple'"):
        model.probabilities([images.read(made / "00.png")], ["Is there a cat"], [(("purple",),)])


def test_pick_score_is_the_scaled_cosine(made, tmp_path, capsys):
    """Against transformers' own features. Catches CLIPScore's prefix or its clamp, and a scale left out; and OpenAI's
    CLIP, whose activation is another."""
    folder = tiny_scorers.clip(tmp_path / "PickScore_v1", activation="gelu")
    from rfjax.scorers import clip

    words = ["score", str(made), "--metric=pickscore", f"--out={tmp_path / 'out'}", "--batch-size=16"]
    assert main([*words, f"--clip={folder}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    model = clip.load(folder, torch.device("cpu"), activation="gelu")
    with torch.no_grad():
        for index in (0, 3):
            seen = model.model.get_image_features(images.clip_transform(Image.open(made / f"{index:02}.png"))[None])
            said = model.model.get_text_features(**model.tokenizer([CAPTIONS[index % 2]], return_tensors="pt"))
            cosine = torch.cosine_similarity(seen.pooler_output[0], said.pooler_output[0], dim=0)
            expected = float(model.model.logit_scale.exp() * cosine)
            assert rows[index]["score"] == pytest.approx(expected, rel=1e-4)
    printed = capsys.readouterr().out
    assert f"pickscore_by_pickscore-v1-{model.sha256[:8]}" in printed
    assert main([*words, f"--clip={tiny_scorers.clip(tmp_path / 'openai')}"]) == 2
    assert "PickScore's CLIP needs 'gelu'" in capsys.readouterr().err
