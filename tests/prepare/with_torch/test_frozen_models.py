"""Features and latents equal those of diffusers' pipeline for all sources; incomplete folders of models are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from helpers import photographs
from helpers.photographs_tfds import write_tfds
from rfjax.cli import main
from rfjax.config import DataConfig, PreparedConfig
from rfjax.data.batch import stills
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import frozen, manifest
from rfjax.data.prepared.corpus import with_encoders
from rfjax.errors import ConfigError
from rfjax.prepare import images, shard

CAPTIONS = [
    "a cat",
    "a photo of a cat left of a dog, sharp!",
    "",
    "ÀÉ 猫 🐈 unknown letters",
    "a cat and a bat, " * 600,  # ten kilobytes
]
SIDE = 32


@pytest.fixture(scope="module")
def pipeline(models):
    """diffusers' SD3 pipeline over the same folders; its transformer and scheduler are not used."""
    transformer = SD3Transformer2DModel(
        sample_size=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=96,
        caption_projection_dim=8,
        pooled_projection_dim=72,
        pos_embed_max_size=4,
    )
    numbered = lambda name, n: models / (name if n == 1 else f"{name}_{n}")  # noqa: E731
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=None,
        vae=AutoencoderKL.from_pretrained(models / "vae"),
        **{
            f"text_encoder{'' if n == 1 else f'_{n}'}": CLIPTextModelWithProjection.from_pretrained(
                numbered("text_encoder", n)
            )
            for n in (1, 2)
        },
        text_encoder_3=T5EncoderModel.from_pretrained(numbered("text_encoder", 3)),
        **{
            f"tokenizer{'' if n == 1 else f'_{n}'}": AutoTokenizer.from_pretrained(numbered("tokenizer", n))
            for n in (1, 2, 3)
        },
    )


def reference_text(pipeline, captions, tokens):
    with torch.inference_mode():
        context, _, pooled, _ = pipeline.encode_prompt(
            captions, captions, captions, do_classifier_free_guidance=False, max_sequence_length=tokens
        )
    return context.numpy(), pooled.numpy()


def reference_latents(pipeline, pixels):
    """As diffusers' SD3 image-to-image pipeline has them, but for the mean instead of a sample."""
    processor = VaeImageProcessor(vae_scale_factor=8)
    vae = pipeline.vae
    with torch.inference_mode():
        images = processor.preprocess([Image.fromarray(one) for one in pixels])
        latents = vae.encode(images).latent_dist.mean
        return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()


def prepared(models, source, out, *more):
    words = [
        "prepare",
        str(source),
        f"--out={out}",
        f"--models={models}",
        f"--size={SIDE}",
        "--precision=float32",
        "--batch-size=4",
    ]
    assert main([*words, *more]) == 0
    return out


def opened(folder, tokens=154, **more):
    data = DataConfig(
        corpus="prepared",
        image_size=4,
        channels=16,
        context_tokens=tokens,
        context_size=96,
        pooled_size=72,
        prepared=PreparedConfig(path=str(folder), **more),
    )
    return load_corpus(data, 0)


@pytest.mark.parametrize("tokens", [77, 20])
def test_what_is_stored_is_what_diffusers_computes(models, pipeline, tmp_path, tokens):
    """Catches another layer, a final norm, a projection left out or put in, other padding, encoders in another
    order, a sample for the mean, channels or pixels in another order, and shift and scale in another way.

    Each image also has captions that are long, empty of known letters, or of another script."""
    root = photographs.write_folder(tmp_path / "in")
    names = sorted(photographs.FILES)
    for name, caption in zip(names, [text for text in CAPTIONS if text.strip()], strict=False):
        (root / "sub" / f"{name}.txt").write_text(caption)
    out = prepared(models, root, tmp_path / "out", f"--t5-tokens={tokens}", "--validation-share=0", "--shard-size=5")
    corpus = opened(out, tokens=77 + tokens)
    batch = corpus.examples(np.arange(16), "train")
    captions = corpus.captions(np.arange(16), "train")
    assert len(set(captions)) == 16
    context, pooled = reference_text(pipeline, captions, tokens)
    assert batch.context.shape == context.shape == (16, 77 + tokens, 96)
    for found, expected in ((batch.context, context), (batch.pooled, pooled)):
        assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())  # values reach 500
    assert np.abs(context[:, :77, :80]).std() > 0.1 and np.abs(pooled).std() > 0.1 and context[:, 77:].std() > 0.1
    assert not batch.context[:, :77, 80:].any()
    by_caption = {(root / "sub" / f"{name}.txt").read_text().strip(): name for name in names}
    pixels = [images.decode(photographs.encoded(by_caption[caption]), SIDE, "lanczos").pixels for caption in captions]
    latents = reference_latents(pipeline, pixels)
    assert np.abs(stills(batch.latents) - latents).max() < 1e-5 and latents.std() > 0.1
    facts = manifest.read(out).facts
    assert facts["truncated"]["clip_l"] == 1 == facts["truncated"]["t5"] or tokens < 77
    assert facts["latents"]["shift"] == 0.0609 and facts["latents"]["scale"] == 1.5305
    again = corpus.encode([captions[0], ""])  # as evaluation asks for prompts and for the empty one
    assert np.abs(again[0][0] - batch.context[0]).max() < 1e-5
    assert np.abs(again[0] - reference_text(pipeline, [captions[0], ""], tokens)[0]).max() < 1e-5


def test_four_sources_give_the_same_latents_and_features(models, tmp_path):
    """Equal bit for bit, since each shard has the same images: sums in another batch could round differently."""
    names = sorted(photographs.FILES)[:7]
    sources = {
        "folder": photographs.write_folder(tmp_path / "folder", names),
        "webdataset": photographs.write_tars(tmp_path / "tars", names, each=3),
        "parquet": photographs.write_parquet(tmp_path / "a.parquet", names),
        "tfds": f"tfds:{write_tfds(tmp_path / 'tfds', names)}",
    }
    found = {}
    for kind, source in sources.items():
        corpus = opened(prepared(models, source, tmp_path / f"out-{kind}", "--validation-share=1", "--shard-size=3"))
        assert corpus.manifest.facts["source"]["kind"] == kind
        assert corpus.captions(np.arange(7), "validation") == [photographs.FILES[name][1] for name in names]
        found[kind] = corpus.examples(np.arange(7), "validation")
    for kind in sources:
        for ours, theirs in zip(found[kind], found["folder"], strict=True):
            assert np.array_equal(ours, theirs), kind


def test_a_preparation_that_was_interrupted_ends_in_the_same_bytes(models, tmp_path, monkeypatch):
    """Catches, with the real classes, a batch that spans shards: after a resume its sums would round differently."""
    root = photographs.write_folder(tmp_path / "in", sorted(photographs.FILES)[:9])
    whole = prepared(models, root, tmp_path / "whole", "--shard-size=3", "--batch-size=2", "--validation-share=0.3")
    out, encode, left = tmp_path / "out", shard._encode, [4]

    def interrupted(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        encode(*arguments)

    monkeypatch.setattr(shard, "_encode", interrupted)
    words = ["prepare", str(root), f"--out={out}", f"--models={models}", f"--size={SIDE}", "--precision=float32"]
    assert main([*words, "--shard-size=3", "--batch-size=2", "--validation-share=0.3"]) == 130
    assert len(list(out.glob("shard-*.json"))) == 1 and not list(out.glob(".shard*"))
    prepared(models, root, out, "--shard-size=3", "--batch-size=2", "--validation-share=0.3")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_decoding_is_the_pipelines(models, pipeline, tmp_path):
    corpus = opened(
        prepared(
            models,
            photographs.write_folder(tmp_path / "in", ["moon", "coffee"]),
            tmp_path / "out",
            "--validation-share=1",
        )
    )
    latents = corpus.examples(np.arange(2), "validation").latents
    vae = pipeline.vae
    with torch.inference_mode():
        channels_first = torch.from_numpy(stills(latents)).permute(0, 3, 1, 2)
        raw = channels_first / vae.config.scaling_factor + vae.config.shift_factor
        expected = VaeImageProcessor(vae_scale_factor=8).postprocess(vae.decode(raw).sample, output_type="np")
    shown = corpus.to_images(latents)
    assert np.abs(shown - expected).max() < 1e-5 and shown.std() > 0.01
    again = reference_latents(pipeline, (shown * 255).round().astype(np.uint8))
    assert np.abs(stills(corpus.to_latents(shown)) - again).max() < 0.1


def test_half_precision_rounds_and_no_more(models, tmp_path):
    """Stored float16 is float32 rounded once: a relative error of at most 2^-11."""
    root = photographs.write_folder(tmp_path / "in", ["moon", "coffee"])
    whole = opened(prepared(models, root, tmp_path / "a", "--validation-share=1")).examples(np.arange(2), "validation")
    out = prepared(models, root, tmp_path / "b", "--validation-share=1", "--precision=float16")
    half = opened(out).examples(np.arange(2), "validation")
    assert np.array_equal(half.pooled, whole.pooled)
    assert np.array_equal(half.context, whole.context.astype(np.float16).astype(np.float32))
    assert 0 < np.abs(half.latents - whole.latents).max() < 2**-11 * 1.5305 * 2


def test_an_unprojected_clip_gives_its_pooled_output(models, tmp_path):
    """SD3's own code takes CLIP-L's pooled vector without a projection; a folder may hold such a model."""
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    model = CLIPTextModel.from_pretrained(models / "text_encoder")
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")
    loaded = frozen.load(folder, encoders=("clip_l",))
    ids = AutoTokenizer.from_pretrained(models / "tokenizer")(
        CAPTIONS, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        expected = model(ids).pooler_output.numpy()
    assert np.abs(loaded.text(CAPTIONS)["clip_l.pooled"] - expected).max() < 1e-5


def test_a_subset_of_encoders_is_prepared_alone(models, tmp_path):
    root = photographs.write_folder(tmp_path / "in", ["moon"])
    out = prepared(models, root, tmp_path / "out", "--encoders=clip_l,clip_g", "--validation-share=0")
    assert manifest.layout(manifest.read(out).encoders)[:2] == ((77, 80), 72)


def test_a_folder_of_models_that_is_not_whole_is_refused_by_name(models, tmp_path):
    def broken(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(models, folder)
        change(folder)
        return folder

    def without_a_tensor(folder):
        from safetensors.torch import load_file, save_file

        path = folder / "text_encoder_2" / "model.safetensors"
        tensors = load_file(path)
        del tensors["text_projection.weight"]
        save_file(tensors, path, {"format": "pt"})

    def renamed(folder):
        for path in folder.glob("*/*.safetensors"):
            path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))

    def of_another_class(folder):
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["CLIPModel"]}))

    cases = [
        (lambda folder: (folder / "text_encoder_3" / "model.safetensors").unlink(), "text_encoder_3 has no weights"),
        (renamed, "it has diffusion_pytorch_model.fp16.safetensors: --models-variant"),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae is no model's folder"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "not its tokenizer tokenizer_2"),
        (without_a_tensor, "text_encoder_2 lacks 1 weights of CLIPTextModelWithProjection, text_projection.weight"),
        (of_another_class, "text_encoder is a CLIPModel; clip_l must be a CLIPTextModel or"),
        (
            lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut"),
            "vae cannot be loaded",
        ),
        (lambda folder: [shutil.rmtree(path) for path in folder.glob("text_encoder*")], "has no text encoder"),
        (shutil.rmtree, "no folder of models at .*hf download"),
    ]
    for change, words in cases:
        with pytest.raises(ConfigError, match=words):
            frozen.load(broken(change))
    assert frozen.load(broken(renamed), variant="fp16").latent_channels == 16


def test_other_weights_than_those_prepared_with_are_refused(models, tmp_path):
    """Catches prompts encoded, or images decoded, by models that training did not see."""
    out = prepared(
        models, photographs.write_folder(tmp_path / "in", ["moon"]), tmp_path / "out", "--validation-share=1"
    )
    other = tmp_path / "other"
    shutil.copytree(models, other)
    path = other / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ConfigError, match="clip_g in .* is not what .* was prepared with"):
        opened(out, models=str(other)).encode(["a cat"])
    shutil.copytree(models, tmp_path / "moved")
    assert opened(out, models=str(tmp_path / "moved")).encode(["a cat"])[0].shape == (1, 154, 96)


def test_prompts_are_encoded_with_some_of_the_encoders(models, tmp_path):
    """A run's samples can be made without T5, and then its folder may be missing. Catches an encoder's features in
    another encoder's slot, and a search for T5."""
    out = prepared(
        models, photographs.write_folder(tmp_path / "in", ["moon"]), tmp_path / "out", "--validation-share=1"
    )
    shutil.copytree(models, tmp_path / "two")
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "two" / name)
    whole = opened(out).encode(CAPTIONS)
    context, pooled = with_encoders(opened(out, models=str(tmp_path / "two")), ("clip_g", "clip_l")).encode(CAPTIONS)
    np.testing.assert_array_equal(context[:, :77], whole[0][:, :77])
    assert not context[:, 77:].any() and whole[0][:, 77:].any()
    np.testing.assert_array_equal(pooled, whole[1])
    alone = with_encoders(opened(out), ("clip_g",))
    assert [slot.name for slot in alone.shapes.encoders] == ["clip_g"] and alone.shapes.context == (154, 96)
    with pytest.raises(
        ConfigError, match="--encoders has 't6', which the run was not trained with; it has clip_l, clip_g, t5"
    ):
        with_encoders(opened(out), ("t6",))
    with pytest.raises(ConfigError, match="the corpus shapes was not prepared with text encoders; leave it out"):
        with_encoders(load_corpus(DataConfig(), 0), ("t5",))


def test_inspect_decodes_beside_the_thumbnails(models, tmp_path):
    out = prepared(
        models, photographs.write_folder(tmp_path / "in", ["moon", "coffee"]), tmp_path / "out", "--validation-share=0"
    )
    assert main(["inspect", str(out), f"--out={tmp_path / 'p.png'}", f"--models={models}"]) == 0
    wide, high = Image.open(tmp_path / "p.png").size
    assert wide > 2 * high


def test_code_in_a_tokenizers_folder_is_not_run(models, tmp_path, monkeypatch):
    """transformers asks the terminal whether to run it. Catches an answer that a pipe gives."""
    folder = shutil.copytree(models, tmp_path / "models")
    (folder / "tokenizer" / "ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Ours: pass\n")
    about = {"tokenizer_class": "Ours", "auto_map": {"AutoTokenizer": ["ours.Ours", None]}}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="tokenizer cannot be loaded"):
        frozen.load(folder, encoders=["clip_l"])
    assert not (tmp_path / "ran").exists()
