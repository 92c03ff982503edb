"""One image made twice: by our sampler, and by diffusers' scheduler from the same noise and text."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from helpers.random_runs import make_config, make_run
from rfjax.config import SamplerConfig
from rfjax.data.corpus import load_corpus
from rfjax.evaluation.generate import make_generator, noise_for, prompt_ids
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.samplers import sampling_times
from rfjax.interop.exporting import export_run

# The sizes of the default study's models.
MODEL = {
    "depth": 2,
    "hidden": 128,
    "head_size": 32,
    "patch_size": 4,
    "position_tokens": 4,
    "position_span": 4.0,
    "position_grid": 12,
}
PROMPTS = ["a photo of a green square", "a photo of two blue squares"]
GUIDANCE = 4.0


@pytest.fixture(scope="module", params=[1.0, 3.0])
def exported_study_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run = make_run(
        folder / "run", make_config(MODEL, {"corpus": "shapes", "image_size": 16}, timestep_shift=request.param)
    )
    return run, export_run(run.folder, layout="diffusers", out=folder / "out")


@pytest.mark.parametrize("sigmas", ["uniform", "diffusers"])
@pytest.mark.parametrize("steps", [4, 10])
def test_times_are_those_of_diffusers(sigmas, steps):
    """The last step, which diffusers shifts twice, and the shift itself."""
    for shift in (1.0, 3.0):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        _set_times(scheduler, sigmas, steps)
        np.testing.assert_allclose(sampling_times(steps, shift, sigmas), scheduler.sigmas.numpy(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("sigmas", ["uniform", "diffusers"])
def test_diffusers_makes_our_image(exported_study_model, sigmas):
    """Anything between prompt and pixel: noise, guidance, its null condition, times, the sign of the step."""
    run, folder = exported_study_model
    corpus, shift = load_corpus(run.config.data, run.config.seed), run.config.timestep_shift
    formulation = parse_formulation(run.config.formulation, shift)
    ids = prompt_ids(len(PROMPTS), 2)
    conditions = corpus.encode(PROMPTS).rows(ids[:, 0])
    sampler = SamplerConfig(method="euler", steps=10, guidance_scale=GUIDANCE, sigmas=sigmas)
    generate = make_generator(run.backbone.apply, sampler, formulation, corpus.shapes.latents, batch_size=4)
    with jax.default_matmul_precision("highest"):
        ours = generate(run.params, 0, ids, conditions)

    model = SD3Transformer2DModel.from_pretrained(folder)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    assert scheduler.config.shift == shift
    _set_times(scheduler, sigmas, 10)
    noise = np.asarray(noise_for(0, jax.numpy.asarray(ids), corpus.shapes.latents))
    z = torch.from_numpy(noise[:, 0].copy()).permute(0, 3, 1, 2)
    text = map(torch.from_numpy, conditions)
    features = [torch.cat([part, torch.zeros_like(part)]) for part in text]  # the null condition is zeros
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = model(torch.cat([z, z]), features[0], features[1], t.expand(len(z) * 2))[0]
            positive, null = out.chunk(2)
            z = scheduler.step(null + GUIDANCE * (positive - null), t, z)[0]
    theirs = z.permute(0, 2, 3, 1).numpy()[:, None]
    assert np.abs(ours).max() > 0.5  # else equal images show nothing
    np.testing.assert_allclose(corpus.to_images(ours), corpus.to_images(theirs), rtol=0, atol=1e-3)
    other = dataclasses.replace(sampler, sigmas="uniform" if sigmas == "diffusers" else "diffusers")
    different = make_generator(run.backbone.apply, other, formulation, corpus.shapes.latents, batch_size=4)
    wrong = different(run.params, 0, ids, conditions)
    assert np.abs(corpus.to_images(wrong) - corpus.to_images(theirs)).max() > 1e-3  # the bound can tell schedules apart


def _set_times(scheduler, sigmas, steps):
    if sigmas == "diffusers":
        scheduler.set_timesteps(steps)
    else:  # before the shift, which the scheduler applies itself; it appends the zero
        scheduler.set_timesteps(sigmas=list(np.linspace(1.0, 0.0, steps + 1)[:-1]))
