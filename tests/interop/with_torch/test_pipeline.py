"""A run on a prepared corpus as a whole StableDiffusion3Pipeline: it loads, and makes what `rfjax sample` makes."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from helpers import photographs, tiny_models
from helpers.random_runs import make_config, make_run
from rfjax.cli import main
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import manifest
from rfjax.data.prepared.corpus import PreparedCorpus
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import noise_for, prompt_ids
from rfjax.inputs import seals
from rfjax.interop.exporting import export_run, how_to_call

MODEL = {
    "depth": 2,
    "hidden": 64,
    "head_size": 32,
    "patch_size": 2,
    "position_tokens": 2,
    "position_span": 2.0,
    "position_grid": 4,
}
T5_TOKENS, STEPS, GUIDANCE, SHIFT = 20, 4, 2.0, 3.0
ENCODERS = {"all": (), "without T5": ("clip_l", "clip_g")}
QUICK = (("all", "empty"), ("without T5", "zeros"))  # the others are the whole suite's
PROMPTS = ["a cat", "a photo of a bat, sharp!"]
DATA = {
    "corpus": "prepared",
    "image_size": 4,
    "channels": 16,
    "context_tokens": 77 + T5_TOKENS,
    "context_size": 96,
    "pooled_size": 72,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(frozen models, corpus): latents scaled by the corpus's own deviation, which is not the autoencoder's factor."""
    root = tmp_path_factory.mktemp("prepared")
    models = tiny_models.save_models(root / "models")
    source = photographs.write_folder(root / "in", ["moon", "coffee", "chelsea"])
    words = [
        "prepare",
        str(source),
        f"--out={root / 'corpus'}",
        f"--models={models}",
        "--size=32",
        "--precision=float32",
        "--validation-share=0",
    ]
    assert main([*words, f"--t5-tokens={T5_TOKENS}", "--latent-scaling=measured"]) == 0
    return models, root / "corpus"


def a_run(folder, corpus, encoders=(), **changed):
    data = DATA | {"prepared": {"path": str(corpus), "encoders": list(encoders)}} | changed
    return make_run(folder, make_config(MODEL, data, timestep_shift=SHIFT))


@pytest.fixture(scope="module")
def exported(request, prepared, tmp_path_factory):
    """(run, the pipeline's folder): of all encoders, and of the two CLIPs alone."""
    folder = tmp_path_factory.mktemp("exported")
    run = a_run(folder / "run", prepared[1], request.param)
    assert main(["export", str(run.folder), "--format=diffusers", "--pipeline", f"--out={folder / 'out'}"]) == 0
    return run, folder / "out"


def sampled(monkeypatch, run, out, *words):
    """Latents that `rfjax sample` decodes."""
    kept = []
    with monkeypatch.context() as patch:
        to_images = PreparedCorpus.to_images
        patch.setattr(
            PreparedCorpus,
            "to_images",
            lambda corpus, latents: kept.append(np.asarray(latents)) or to_images(corpus, latents),
        )
        settings = [
            f"--config.evaluation.sampler.steps={STEPS}",
            f"--config.evaluation.sampler.guidance_scale={GUIDANCE}",
            "--config.evaluation.sampler.method=euler",
        ]
        given = [f"--prompt={prompt}" for prompt in PROMPTS]
        assert (
            main(
                [
                    "sample",
                    str(run.folder),
                    *given,
                    "--samples=1",
                    "--seed=5",
                    "--sigmas=diffusers",
                    f"--out={out}",
                    *settings,
                    *words,
                ]
            )
            == 0
        )
    return kept[0]


@pytest.mark.parametrize(
    "exported, negative",
    [
        pytest.param(encoders, negative, id=f"{name}-{of}", marks=() if (name, of) in QUICK else pytest.mark.full)
        for name, encoders in ENCODERS.items()
        for of, negative in {"zeros": None, "empty": "", "a dog": "a dog"}.items()
    ],
    indirect=["exported"],
)
def test_diffusers_pipeline_makes_what_rfjax_sample_makes(exported, monkeypatch, tmp_path, negative):
    """From the same noise, with the same steps and guidance. Catches an encoder in another's place or with another's
    tokenizer, T5 not left out, a null condition that is encoded or an empty prompt that is zeros, other times, and an
    autoencoder that decodes with another scale than the corpus's."""
    run, folder = exported
    ours = sampled(monkeypatch, run, tmp_path / "s.png", *([] if negative is None else [f"--negative={negative}"]))
    without = run.config.data.prepared.encoders == ("clip_l", "clip_g")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, **({"text_encoder_3": None, "tokenizer_3": None} if without else {})
    )
    pipeline.set_progress_bar_config(disable=True)
    index = json.loads((folder / "model_index.json").read_text())
    assert (
        (pipeline.text_encoder_3 is None)
        == without
        == (index["text_encoder_3"] == [None, None] == index["tokenizer_3"])
    )
    shapes = load_corpus(run.config.data, 0).shapes
    noise = np.asarray(noise_for(5, jax.numpy.asarray(prompt_ids(2, 1)), shapes.latents))
    zeros = {
        "negative_prompt_embeds": torch.zeros(2, *shapes.context),
        "negative_pooled_prompt_embeds": torch.zeros(2, shapes.pooled),
    }
    against = zeros if negative is None else {} if negative == "" else {"negative_prompt": [negative] * 2}
    options = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "max_sequence_length": T5_TOKENS,
        "output_type": "latent",
    }
    with torch.inference_mode():
        theirs = pipeline(
            PROMPTS, latents=torch.from_numpy(noise[:, 0].copy()).permute(0, 3, 1, 2), **options, **against
        ).images
        raw = theirs / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
        decoded = pipeline.image_processor.postprocess(pipeline.vae.decode(raw).sample, output_type="np")
    theirs = theirs.permute(0, 2, 3, 1).numpy()[:, None]
    assert np.abs(ours - theirs).max() < 2e-4 * np.abs(ours).max() and np.abs(ours).std() > 0.3
    corpus = load_corpus(run.config.data, 0)
    assert np.abs(corpus.to_images(ours) - decoded).max() < 1e-3 and decoded.std() > 0.01
    other = sampled(monkeypatch, run, tmp_path / "o.png", *(["--negative=a bat"] if negative is None else []))
    assert np.abs(other - theirs).max() > 1e-2 * np.abs(ours).max()  # the bound can tell negatives apart


@pytest.mark.parametrize("exported", [ENCODERS["all"]], ids=["all"], indirect=True)
def test_samples_without_t5_are_the_pipelines_without_it(exported, monkeypatch, tmp_path):
    """A run that was trained with T5, sampled from with `--encoders`. Catches prompts that are encoded with it all
    the same, and images whose record says nothing of it."""
    run, folder = exported
    ours = sampled(monkeypatch, run, tmp_path / "s.png", "--encoders=clip_l,clip_g", "--negative=a dog")
    assert json.loads((tmp_path / "s.json").read_text())["sampler"].endswith("-clip_l+clip_g")
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    shapes = load_corpus(run.config.data, 0).shapes
    noise = np.asarray(noise_for(5, jax.numpy.asarray(prompt_ids(2, 1)), shapes.latents))
    options = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "max_sequence_length": T5_TOKENS,
        "output_type": "latent",
    }
    with torch.inference_mode():
        theirs = pipeline(
            PROMPTS,
            negative_prompt=["a dog"] * 2,
            latents=torch.from_numpy(noise[:, 0].copy()).permute(0, 3, 1, 2),
            **options,
        ).images
    theirs = theirs.permute(0, 2, 3, 1).numpy()[:, None]
    assert np.abs(ours - theirs).max() < 2e-4 * np.abs(ours).max()
    with_it = sampled(monkeypatch, run, tmp_path / "o.png", "--negative=a dog")
    assert np.abs(with_it - theirs).max() > 1e-2 * np.abs(ours).max()


@pytest.mark.parametrize("exported", ENCODERS.values(), ids=ENCODERS, indirect=True)
def test_the_folder_is_whole_and_the_frozen_models_are_as_they_were(exported, prepared, tmp_path):
    """Catches the originals written through a link, and an export that does not come back."""
    run, folder = exported
    models, corpus = prepared
    found = manifest.read(corpus)
    theirs, ours = (json.loads((at / "vae" / "config.json").read_text()) for at in (models, folder))
    assert theirs["scaling_factor"] == 1.5305 and ours == theirs | {
        "scaling_factor": found.scale,
        "shift_factor": found.shift,
    }
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").samefile(
        models / "vae" / "diffusion_pytorch_model.safetensors"
    )
    index = json.loads((folder / "model_index.json").read_text())
    assert (
        index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        and index["text_encoder"][1] == "CLIPTextModelWithProjection"
    )
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["shift"] == SHIFT
    code = how_to_call(run.folder, folder)
    assert ("text_encoder_3=None, tokenizer_3=None" in code) == (index["text_encoder_3"] == [None, None])
    assert f"torch.zeros(1, {77 + T5_TOKENS}, 96)" in code and f"max_sequence_length={T5_TOKENS}," in code
    names = {"torch": torch, "StableDiffusion3Pipeline": StableDiffusion3Pipeline}
    *before, call = code.splitlines()
    exec(compile("\n".join([*before, f"made = {call}"]), "code", "exec"), names)  # noqa: S102, our own
    assert names["made"].images[0].size == (32, 32)
    assert main(["import", str(folder), f"--out={tmp_path / 'back'}"]) == 0


@pytest.mark.full
def test_weights_of_a_variant_are_named_without_it(prepared, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(prepared[0], models)
    for path in models.glob("*/*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    source = photographs.write_folder(tmp_path / "in", ["moon"])
    words = [
        "prepare",
        str(source),
        f"--out={tmp_path / 'corpus'}",
        f"--models={models}",
        "--models-variant=fp16",
        "--size=32",
        "--validation-share=0",
    ]
    assert main([*words, f"--t5-tokens={T5_TOKENS}"]) == 0
    run = a_run(tmp_path / "run", tmp_path / "corpus")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        export_run(run.folder, layout="diffusers", out=tmp_path / "out", whole_pipeline=True)
    )
    assert pipeline.vae.config.scaling_factor == 1.5305


def test_what_no_pipeline_can_be_made_of_is_refused_by_name(prepared, tmp_path):
    models, corpus = prepared
    run = a_run(tmp_path / "run", corpus)
    alone = a_run(tmp_path / "alone", corpus, ("clip_l", "t5"))
    shapes = make_run(
        tmp_path / "shapes",
        make_config(
            MODEL | {"patch_size": 4, "position_tokens": 4, "position_grid": 12}, {"corpus": "shapes", "image_size": 16}
        ),
    )
    three = make_run(
        tmp_path / "three",
        dataclasses.replace(
            run.config, model=dataclasses.replace(run.config.model, weight_sets=3, first_text_tokens=77)
        ),
    )
    other = tmp_path / "other"
    shutil.copytree(models, other)
    path = other / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")
    cases = [
        (shapes, {}, "config.data.corpus is shapes, which has no autoencoder"),
        (alone, {}, "clip_g is not among the text encoders of the run"),
        (three, {}, "config.model.weight_sets is 3, and the diffusers layout needs 2"),
        (run, {"models": str(other)}, "clip_g in .* is not what .* was prepared with"),
        (run, {"models": str(tmp_path / "nowhere")}, "name their folder with --models"),
        (run, {"layout": "plain"}, "give --format diffusers"),
        (run, {"whole_pipeline": False, "models": "x"}, "with --pipeline alone"),
    ]
    for given, options, words in cases:
        with pytest.raises(ConfigError, match=words):
            export_run(given.folder, out=tmp_path / "out", **{"layout": "diffusers", "whole_pipeline": True} | options)
        assert not (tmp_path / "out").exists()
    for part, kind, words in (
        ("clip_l", "CLIPTextModel", "clip_l of the corpus is a CLIPTextModel"),
        ("vae", "identity", "the autoencoder of .* is identity, and StableDiffusion3Pipeline has an AutoencoderKL"),
    ):
        facts = json.loads((corpus / "manifest.json").read_text())
        facts["models"]["parts"][part]["class"] = kind
        changed = shutil.copytree(corpus, tmp_path / f"of-{kind}")
        facts.pop(seals.SEAL)
        (changed / "manifest.json").write_text(json.dumps(seals.seal(facts)))
        with pytest.raises(ConfigError, match=words):
            export_run(
                a_run(tmp_path / kind, changed).folder, layout="diffusers", out=tmp_path / "out", whole_pipeline=True
            )
