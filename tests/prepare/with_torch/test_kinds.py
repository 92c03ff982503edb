"""Each kind of autoencoder and text encoder beyond SD3's, against the libraries' own pipelines, and from end to end."""

import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from helpers import photographs, tiny_kinds
from rfjax.cli import main
from rfjax.config import DataConfig, PreparedConfig
from rfjax.data.batch import stills
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import autoencoders, frozen, manifest, text_encoders
from rfjax.errors import ConfigError

CAPTIONS = ["a photo of a cat", "a cup of coffee on the moon", "", "a dog on " * 20]
SETTINGS = {"minilm": {"tokens": 12}, "llm": {"tokens": 10, "layer": -2}}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return tiny_kinds.save_kinds(tmp_path_factory.mktemp("kinds"), "AutoencoderDC")


@pytest.fixture(scope="module")
def loaded(kinds):
    return frozen.load(kinds, text_settings=SETTINGS)


def pixels():
    values = np.linspace(0, 255, 2 * 16 * 24 * 3).reshape(2, 16, 24, 3)
    return ((values * 7) % 256).astype(np.uint8)


def of_flux2(vae, images):
    pipeline = diffusers.Flux2Pipeline
    return pipeline._encode_vae_image(
        SimpleNamespace(vae=vae, _patchify_latents=pipeline._patchify_latents), images, None
    )


def from_flux2(vae, latents):
    """As the end of Flux2Pipeline's call."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return vae.decode(diffusers.Flux2Pipeline._unpatchify_latents(latents * deviation + mean)).sample


def of_code(vae, images):
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import retrieve_latents

    latents = retrieve_latents(vae.encode(images))
    return (latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor


def from_code(vae, latents):
    return vae.decode(latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)).sample


REFERENCES = {
    "AutoencoderKLFlux2": (of_flux2, from_flux2, 4),
    "AutoencoderDC": (lambda vae, x: vae.encode(x).latent * vae.config.scaling_factor, from_code, 4),
    "AutoencoderTiny": (of_code, from_code, 4),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_latents_and_images_of_each_autoencoder_are_its_pipelines(name, tmp_path):
    """Catches channels of a patch in another order, statistics left out, a scale that is the class's default, and a
    side reduced by another number."""
    encode, decode, reduction = REFERENCES[name]
    folder = tiny_kinds.save_kinds(tmp_path, name)
    models = frozen.load(folder, encoders=("minilm",), text_settings={"minilm": SETTINGS["minilm"]})
    vae = getattr(diffusers, name).from_pretrained(folder / "vae").eval()
    assert models.reduction == reduction
    with torch.inference_mode():
        images = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = encode(vae, images)
        shown = decode(vae, expected).permute(0, 2, 3, 1).numpy()
    raw = models.latents(pixels())
    scaled = (raw - models.shift) * models.scale
    assert raw.shape == (2, 16 // reduction, 24 // reduction, models.latent_channels)
    assert np.abs(scaled - expected.permute(0, 2, 3, 1).numpy()).max() < 1e-5 and scaled.std() > 0.05
    again = models.images(raw)
    assert np.abs(again - np.clip(shown / 2 + 0.5, 0, 1)).max() < 1e-5 and again.std() > 0.001


def test_pixels_come_back_as_they_were():
    models = frozen.pixel_models()
    raw = models.latents(pixels())
    assert raw.min() == -1 and raw.max() == 1 and models.reduction == 1 and models.latent_channels == 3
    stored = raw.astype(np.float16).astype(np.float32)
    assert np.array_equal((models.images(stored) * 255).round().astype(np.uint8), pixels())


def test_a_sentence_encoders_states_are_diffusers(kinds, loaded):
    """HunyuanDiT is diffusers' pipeline with a BERT. Catches a mask left out, and padding that is not zero."""
    folder = kinds / "text_encoder_minilm"
    bert, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    own = SimpleNamespace(
        tokenizer=tokenizer, tokenizer_2=None, text_encoder=bert, text_encoder_2=None, transformer=None
    )
    with torch.inference_mode():
        expected, _, mask, _ = diffusers.HunyuanDiTPipeline.encode_prompt(
            own, CAPTIONS, "cpu", bert.dtype, 1, False, max_sequence_length=12
        )
    expected, mask = expected.numpy() * mask.numpy()[..., None], mask.numpy()
    found = loaded.text(CAPTIONS)
    assert found["minilm.context"].shape == (4, 12, 24) and mask.sum(1).tolist() == [7, 9, 2, 12]
    assert np.abs(found["minilm.context"] - expected).max() < 1e-5 and expected.std() > 0.1
    means = expected.sum(1) / mask.sum(1)[:, None]
    assert np.abs(found["minilm.pooled"] - means).max() < 1e-5
    assert loaded.token_counts(CAPTIONS)["minilm"] == [7, 9, 2, 62]


def test_a_language_models_states_are_diffusers(kinds, loaded):
    """Lumina2 takes the layer before the last, Sana the last. Catches a layer that is off by one, a caption without
    tokens that gives NaN, and the last token of the padding for that of the caption."""
    folder = kinds / "text_encoder_llm"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    own = SimpleNamespace(tokenizer=tokenizer, text_encoder=model, _text_preprocessing=lambda text, **_: text)
    last = frozen.load(kinds, encoders=("llm",), text_settings={"llm": {"tokens": 10, "pooled": "mean"}})
    with torch.inference_mode():
        before, mask = diffusers.Lumina2Pipeline._get_gemma_prompt_embeds(own, CAPTIONS, "cpu", 10)
        sana, _ = diffusers.SanaPipeline._get_gemma_prompt_embeds(
            own, CAPTIONS, "cpu", model.dtype, max_sequence_length=10
        )
    held = mask.numpy()[..., None] > 0
    found = loaded.text(CAPTIONS)
    for context, expected in ((found["llm.context"], before), (last.text(CAPTIONS)["llm.context"], sana)):
        assert np.abs(context - np.where(held, expected.numpy(), 0)).max() < 1e-5 and context.std() > 0.1
    pooled = found["llm.pooled"]
    assert np.array_equal(pooled[0], found["llm.context"][0, 4]) and not pooled[2].any()
    assert np.array_equal(pooled[3], found["llm.context"][3, 9])


def test_a_template_is_seen_and_its_tokens_can_be_left_out(kinds):
    settings = {"tokens": 12, "template": "a photo of {} on the moon", "skip": 3}
    found = frozen.load(kinds, encoders=("llm",), text_settings={"llm": settings}).text(["a cat"])["llm.context"]
    whole = frozen.load(kinds, encoders=("llm",), text_settings={"llm": {"tokens": 12}})
    assert np.array_equal(found, whole.text(["a photo of a cat on the moon"])["llm.context"][:, 3:])
    left = frozen.load(kinds, encoders=("llm",), text_settings={"llm": {"tokens": 12, "padding": "left"}})
    turned = left.text(["a cat"])["llm.context"]
    assert (
        not turned[:, :10].any() and np.abs(turned[:, 10:] - whole.text(["a cat"])["llm.context"][:, :2]).max() < 1e-5
    )


def test_a_chat_template_is_the_tokenizers_own(kinds):
    """Catches a chat without the mark of the answer, one whose first token comes twice, and a tokenizer without any."""
    tokenizer = AutoTokenizer.from_pretrained(kinds / "text_encoder_llm")
    with pytest.raises(ConfigError, match="has no chat template; write the template out"):
        text_encoders.written_out("chat", tokenizer, kinds)
    say = "[CLS] photo {{ messages[0]['content'] }}{% if add_generation_prompt %} moon{% endif %}"
    tokenizer.chat_template = say
    assert text_encoders.written_out("chat", tokenizer, kinds) == "[CLS] photo {} moon"
    minilm = AutoTokenizer.from_pretrained(kinds / "text_encoder_minilm")  # puts [CLS] before every text
    minilm.chat_template, minilm.bos_token = say, "[CLS]"
    assert text_encoders.written_out("chat", minilm, kinds) == " photo {} moon"
    assert text_encoders.settings_of("llm", "decoder", {"template": "chat"}).template == "chat"
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="of one message; write the template out"):
        text_encoders.written_out("chat", tokenizer, kinds)


@pytest.mark.parametrize(
    "autoencoder", ["identity", *(pytest.param(name, marks=pytest.mark.full) for name in REFERENCES)]
)
def test_a_corpus_of_each_kind_is_prepared_trained_on_and_sampled(autoencoder, tmp_path):
    """From photographs to a picture, with both new kinds of text encoders beside each other."""
    name = autoencoder if autoencoder in REFERENCES else "AutoencoderDC"
    models = tiny_kinds.save_kinds(tmp_path / "models", name)
    if autoencoder == "identity":  # needs no folder of an autoencoder
        (models / "vae").rename(tmp_path / "elsewhere")
    root = photographs.write_folder(tmp_path / "in", sorted(photographs.FILES)[:6])
    keys = tmp_path / "keys.txt"
    keys.write_text("sub/brick.png\nsub/coffee.png\n")
    words = ["prepare", root, f"--out={tmp_path / 'out'}", f"--models={models}", "--size=16", "--precision=float32"]
    words += [f"--validation-keys={keys}", "--text-setting=minilm.tokens=12", "--text-setting=llm.tokens=10"]
    words += [f"--autoencoder={'identity' if autoencoder == 'identity' else 'vae'}"]
    assert main(list(map(str, words))) == 0
    found = manifest.read(tmp_path / "out")
    (context, pooled, slots), shape = manifest.layout(found.encoders), found.buckets[0].latents
    assert context == (22, 32) and pooled == 56 and [slot.pooled for slot in slots] == [(0, 32), (32, 56)]
    sizes = {"image_size": found.side, "channels": shape[-1], "context_tokens": 22, "context_size": 32}
    data = {"corpus": "prepared", **sizes, "pooled_size": pooled, "prepared": {"path": str(tmp_path / "out")}}
    corpus = load_corpus(DataConfig(**{**data, "prepared": PreparedConfig(path=str(tmp_path / "out"))}), 0)
    assert corpus.captions(np.arange(2), "validation") == [photographs.FILES[name][1] for name in ("brick", "coffee")]
    batch = corpus.examples(np.arange(2), "validation")
    again = corpus.encode(corpus.captions(np.arange(2), "validation"))
    assert np.abs(again.context - batch.context).max() < 1e-5 and np.abs(again.pooled - batch.pooled).max() < 1e-5
    if autoencoder == "identity":
        assert np.abs(stills(batch.latents)).max() <= 1
        for number, image in enumerate(corpus.to_images(batch.latents)):
            source = Image.open(root / "sub" / f"{('brick', 'coffee')[number]}.png")
            assert abs(image.mean() - np.asarray(source).mean() / 255) < 0.1
    config = tmp_path / "config.py"
    model = {"depth": 1, "hidden": 16, "head_size": 8, "patch_size": 1, "position_tokens": 4, "position_span": 4.0}
    train = {"steps": 2, "batch_size": 2, "warmup_steps": 1, "log_every": 1}
    validation = {"examples": 2, "batch_size": 2}
    fields = {"model": model, "data": data, "train": train}
    fields["evaluation"] = {"validation": validation, "geneval": {"prompts_per_task": 0}, "sampler": {"steps": 2}}
    config.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({fields!r})\n")
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 0
    picture = tmp_path / "p.png"
    assert main(["sample", str(tmp_path / "run"), "--prompt=a photo of a cat", "--samples=1", f"--out={picture}"]) == 0
    assert Image.open(picture).size[0] >= 16


def refused(folder, words, **options):
    with pytest.raises(ConfigError, match=words):
        frozen.load(folder, **options)


def test_models_and_settings_that_do_not_fit_are_refused_by_name(kinds, tmp_path):
    """Catches a model of an unknown class, a tokenizer of another model, a layer out of range, and settings that are
    none, before anything is encoded."""
    for where, key, value, words in (
        ("vae", "_class_name", "VQModel", "vae is a VQModel; an autoencoder must be one of AutoencoderKL, .*identity"),
        (
            "text_encoder_llm",
            "architectures",
            ["OPTModel"],
            r"is a OPTModel, which rfjax does not know.*bert \(BertModel, ",
        ),
    ):
        folder = tmp_path / where
        folder.mkdir()
        for part in kinds.iterdir():
            (folder / part.name).mkdir()
            for path in part.iterdir():
                (folder / part.name / path.name).symlink_to(path)
        config = folder / where / "config.json"
        about = json.loads(config.read_text())
        config.unlink()
        config.write_text(json.dumps(about | {key: value}))
        refused(folder, words)
    only = {"encoders": ("minilm",), "autoencoder": "identity"}
    refused(
        kinds,
        "has the layer 3, and .*text_encoder_minilm has 2 layers",
        text_settings={"minilm": {"layer": 3, "tokens": 8}},
        **only,
    )
    said = "--text-setting asks for 20 tokens, and .* takes at most 16"
    refused(kinds, said, text_settings={"minilm": {"tokens": 20}}, **only)
    refused(kinds, "--text-setting names 'qwen'.*minilm, llm|llm, minilm", text_settings={"qwen": {"tokens": 20}})
    tokenizer = tmp_path / "text_encoder_llm" / "tokenizer_minilm"
    tokenizer.mkdir()
    for text, words in (
        ("minilm", "NAME.FIELD=VALUE"),
        ("minilm.token=3", "did you mean tokens"),
        ("minilm.tokens=x", "whole number"),
        ("t5.tokens=3", "t5 runs as in SD3's pipeline"),
    ):
        with pytest.raises(ConfigError, match=words):
            text_encoders.parse_settings([text])
    for given, words in (({"pooled": "max"}, "mean or first"), ({"template": "a"}, "one {}"), ({"skip": 77}, "below")):
        with pytest.raises(ConfigError, match=words):
            text_encoders.settings_of("minilm", "bert", given)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(kinds, tmp_path):
    """Catches an index out of the embedding's range at the first rare word, hours later."""
    folder = tmp_path / "models"
    (folder / "text_encoder_minilm").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "text_encoder_minilm" / name).symlink_to(kinds / "text_encoder_minilm" / name)
    words, tiny_kinds.WORDS = tiny_kinds.WORDS, (*tiny_kinds.WORDS, "hedgehog")
    try:
        tiny_kinds.save_tokenizer(folder / "tokenizer_minilm", "[CLS]", "[SEP]", 16)
    finally:
        tiny_kinds.WORDS = words
    refused(
        folder, "has 15 tokens, and the model knows 14", autoencoder="identity", text_settings={"minilm": {"tokens": 8}}
    )


def test_docs_name_every_row():
    """The page lists what can be prepared, from the tables."""
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs/prepare.md").read_text()
    names = [name for row in text_encoders.KINDS.values() for name in row.classes]
    for name in (*autoencoders.KINDS, *names):
        assert f"`{name}`" in page, name
