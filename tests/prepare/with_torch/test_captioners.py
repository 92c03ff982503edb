"""`rfjax recaption` writes what the model alone generates for each image: BLIP, GIT and a chat model."""

import io
import json
import shutil
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, BlipForConditionalGeneration, GitForCausalLM, LlavaForConditionalGeneration

from helpers import photographs, tiny_captioners
from rfjax.cli import main
from rfjax.config import DataConfig, PreparedConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import manifest
from rfjax.errors import ConfigError
from rfjax.prepare import captioner

NAMES = sorted(photographs.FILES)[:6]
TOKENS = 6
SAY = "describe this image"


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioners")
    return {kind: getattr(tiny_captioners, f"save_{kind}")(root / kind) for kind in ("blip", "git", "llava")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return photographs.write_folder(tmp_path_factory.mktemp("source") / "in", NAMES)


def squares():
    """NAME -> its centred square, by Pillow's crop of the file that the source has."""
    found = {}
    for name in NAMES:
        image = Image.open(io.BytesIO(photographs.encoded(name))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        found[name] = image.crop((left, top, left + side, top + side))
    return found


CLASSES = {"blip": BlipForConditionalGeneration, "git": GitForCausalLM, "llava": LlavaForConditionalGeneration}


@lru_cache
def loaded(kind, folder):
    return CLASSES[kind].from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def by_hand(kind, folder, image, prompt, **options):
    """One image's captions by the recipe in each model's documentation: no batch, no padding, no code of rfjax."""
    model, processor = loaded(kind, folder)
    said = lambda ids: [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]  # noqa: E731
    options = {"max_new_tokens": TOKENS, "do_sample": False} | options
    with torch.inference_mode():
        if kind == "blip":
            return said(
                model.generate(
                    **processor(images=image, **({"text": prompt} if prompt else {}), return_tensors="pt"), **options
                )
            )
        if kind == "git":
            pixels = processor(images=image, return_tensors="pt").pixel_values
            ids = [
                processor.tokenizer.cls_token_id,
                *processor.tokenizer(prompt or "", add_special_tokens=False).input_ids,
            ]
            return said(model.generate(pixel_values=pixels, input_ids=torch.tensor([ids]), **options))
        inputs = processor(images=image, text=f"user <image> {prompt} assistant ", return_tensors="pt")
        return said(model.generate(**inputs, **options)[:, inputs.input_ids.shape[1] :])


def recaption(source, folder, out, *words):
    assert main(["recaption", str(source), f"--model={folder}", f"--out={out}", f"--max-tokens={TOKENS}", *words]) == 0
    lines = [line for path in sorted(out.glob("shard-*-of-?????.jsonl")) for line in path.read_text().splitlines()]
    return {row["key"].split("/")[1][:-4]: row["captions"] for row in map(json.loads, lines)}


@pytest.mark.parametrize(
    "kind, prompt",
    [
        pytest.param("blip", None, marks=pytest.mark.full),
        ("blip", "a photo of"),
        ("git", "a photo of"),
        pytest.param("git", None, marks=pytest.mark.full),
        ("llava", SAY),
    ],
)
def test_captions_are_the_models_own_whatever_the_batch(captioners, source, tmp_path, kind, prompt):
    """Catches a prompt that is left in, cut off or closed too early, padding on the side that is written on, another
    image's caption, another crop, and captions that depend on the batch."""
    words = [f"--prompt={prompt}"] if prompt else []
    found = recaption(source, captioners[kind], tmp_path / "3", "--batch-size=3", "--shard-size=5", *words)
    expected = {name: by_hand(kind, captioners[kind], image, prompt) for name, image in squares().items()}
    nothing = ("", prompt)
    assert found == {name: [] if captions[0] in nothing else captions for name, captions in expected.items()}
    assert len({tuple(captions) for captions in found.values()}) >= 4  # the image decides
    assert all(
        caption.startswith("a photo of ") == (prompt == "a photo of")
        for captions in found.values()
        for caption in captions
    )
    if kind == "llava" or prompt:
        assert recaption(source, captioners[kind], tmp_path / "16", "--batch-size=16", *words) == found


def test_several_captions_are_the_best_beams_or_draws_of_a_seed(captioners, source, tmp_path):
    """Catches mixed captions of neighbours if images have several, and draws that change after a restart."""
    found = recaption(source, captioners["blip"], tmp_path / "beams", "--captions=3", "--beams=4")
    for name, image in squares().items():
        best = by_hand("blip", captioners["blip"], image, None, num_beams=4, num_return_sequences=3)
        assert found[name] == [caption for caption in dict.fromkeys(best) if caption]
    assert max(map(len, found.values())) == 3
    draws = {
        seed: recaption(
            source,
            captioners["blip"],
            tmp_path / f"draws{seed}",
            "--captions=2",
            "--temperature=1",
            f"--seed={seed}",
            "--shard-size=3",
        )
        for seed in (0, 1)
    }
    assert draws[0] != draws[1]
    for path in (tmp_path / "draws0").glob("shard-00001*"):
        path.unlink()
    before = torch.get_rng_state()
    assert (
        recaption(
            source,
            captioners["blip"],
            tmp_path / "draws0",
            "--captions=2",
            "--temperature=1",
            "--seed=0",
            "--shard-size=3",
        )
        == draws[0]
    )
    assert torch.equal(torch.get_rng_state(), before)  # nor does it move another's


def test_from_images_to_a_training_corpus_with_half_its_captions_written(captioners, models, source, tmp_path):
    """With real classes all the way: the features of a synthetic caption are those of its text."""
    captions = tmp_path / "captions"
    found = recaption(source, captioners["blip"], captions, "--prompt=a photo of", "--prompt=a")
    words = [
        "prepare",
        str(source),
        f"--out={tmp_path / 'out'}",
        f"--models={models}",
        "--size=32",
        "--validation-share=0",
        "--precision=float32",
    ]
    assert main([*words, f"--synthetic-captions={captions}", "--shard-size=4"]) == 0
    config = DataConfig(
        corpus="prepared",
        image_size=4,
        channels=16,
        context_tokens=154,
        context_size=96,
        pooled_size=72,
        prepared=PreparedConfig(path=str(tmp_path / "out"), synthetic_captions=0.5),
    )
    corpus = load_corpus(config, 0)
    drawn = corpus.captions(np.arange(180), "train")
    written = {caption for captions in found.values() for caption in captions}
    original = {photographs.FILES[name][1] for name in NAMES}
    assert set(drawn) == written | original
    assert abs(np.mean([caption in written for caption in drawn]) - 0.5) < 4 * 0.5 / 180**0.5
    at = next(n for n, caption in enumerate(drawn) if caption in written)
    batch = corpus.examples(np.array([at]), "train")
    context, pooled = corpus.encode([drawn[at]])
    assert np.abs(batch.context - context).max() < 1e-5 and np.abs(batch.pooled - pooled).max() < 1e-5
    about = manifest.read(tmp_path / "out").facts["source"]["synthetic_captions"]
    assert about["model"]["class"] == "BlipForConditionalGeneration" and "model.safetensors" in about["model"]["files"]
    assert about["settings"]["prompts"] == ["a photo of", "a"] and about["settings"]["temperature"] == 0


def test_a_model_that_cannot_be_used_as_it_is_is_refused_by_name(captioners, tmp_path):
    """Catches weights made up, pickles read, code of the folder run, and another model's captions continued."""

    def broken(kind, change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(captioners[kind], folder)
        change(folder)
        return folder

    def without_a_tensor(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["vision_model.post_layernorm.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def pickled(folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    def with_code(folder):
        path = folder / "config.json"
        about = json.loads(path.read_text()) | {
            "model_type": "own",
            "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"},
        }
        path.write_text(json.dumps(about))
        (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    def text_alone(folder):
        (folder / "processor_config.json").unlink()

    cases = [
        (
            "blip",
            without_a_tensor,
            "lacks 1 weights of AutoModelForImageTextToText, vision_model.post_layernorm.weight",
        ),
        ("blip", pickled, "no model.safetensors or shards of it; it has pytorch_model.bin"),
        ("blip", with_code, "cannot be loaded|no processor"),
        ("blip", text_alone, "no processor of images and text"),
        ("llava", lambda folder: None, "answers instructions: give one, as --prompt"),
        ("blip", shutil.rmtree, "no folder of a model at"),
    ]
    for kind, change, words in cases:
        with pytest.raises(ConfigError, match=words):
            captioner.load(broken(kind, change), captioner.Writing())
    assert not (tmp_path / "ran").exists()
    other = broken(
        "blip",
        lambda folder: (folder / "tokenizer_config.json").write_text(
            (folder / "tokenizer_config.json").read_text() + "\n"
        ),
    )
    hashes = [captioner.load(folder, captioner.Writing()).facts["sha256"] for folder in (captioners["blip"], other)]
    assert hashes[0] != hashes[1]


def test_code_in_a_captioners_folder_is_not_run(captioners, tmp_path, monkeypatch):
    """transformers asks the terminal whether to run it. Catches an answer that a pipe gives."""
    folder = shutil.copytree(captioners["blip"], tmp_path / "model")
    (folder / "ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Ours: pass\n")
    about = json.loads((folder / "config.json").read_text()) | {"model_type": "ours"}
    about["auto_map"] = {"AutoConfig": "ours.Ours", "AutoModelForImageTextToText": "ours.Ours"}
    (folder / "config.json").write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        captioner.load(folder, captioner.Writing())
    assert not (tmp_path / "ran").exists()
