"""Images of a few captions in one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rfjax.errors import ConfigError
from rfjax.evaluation.generate import generator_of, prompt_ids, whole_batch
from rfjax.evaluation.pictures import png_bytes, strip
from rfjax.evaluation.samples import request
from rfjax.evaluation.samples.request import Wanted
from rfjax.files import write_whole
from rfjax.outputs import check_output, is_json_with
from rfjax.training.processes import distributed

AT_ONCE = 64


def sample_picture(
    workdir: Path, overrides: Mapping[str, object], wanted: Wanted, *, prompts: Sequence[str], out: Path
) -> Path:
    """Writes a PNG with a row per caption, and its settings as JSON beside it.

    Raises `ConfigError` for settings that cannot be used."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out is {out}; pictures are written as PNG, so its name must end in .png")
    facts_file = out.with_suffix(".json")
    ours = is_json_with("run", "step", "sampler", "prompts", "latent_size")
    for path in (out, facts_file):
        check_output(path, "--out", made_here=lambda _: ours(facts_file))
    run = request.open_for_sampling(workdir, overrides, wanted)
    step = run.choose_step(wanted.step)
    shape, samples = request.latents_shape(run, wanted.latent_size), wanted.samples
    ids = prompt_ids(len(prompts), samples)
    request.warn_of_unknown_words(run, prompts, wanted)
    conditions = run.corpus.encode(list(prompts)).rows(ids[:, 0])
    against = None if wanted.negative is None else run.corpus.encode([wanted.negative])
    size = whole_batch(run, min(len(ids), AT_ONCE))
    generate = generator_of(run, run.config.evaluation.sampler, size, latent_shape=shape)
    with run.computing():
        params = run.restore_params(step, wanted.weights)
        latents = generate(params, wanted.seed, ids, conditions, against)
    if not distributed.is_first():
        return out
    images = run.corpus.to_images(latents)
    rows = [strip(images[i * samples : (i + 1) * samples], gap=2, side=128)[0] for i in range(len(prompts))]
    picture = np.concatenate([np.pad(row, ((0, 2), (0, 0), (0, 0)), constant_values=1.0) for row in rows])
    facts = request.what_made_them(run, step, wanted, shape) | {
        "latent_size": list(shape[1:3]),
        "prompts": list(prompts),
    }
    write_whole({out: png_bytes(picture), facts_file: json.dumps(facts, indent=1) + "\n"})
    return out
