"""Images or clips of a few captions in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.evaluation.generate import generator_of, prompt_ids, whole_batch
from rfjax.evaluation.samples import request
from rfjax.evaluation.samples.formats import find_format, frame_rate
from rfjax.evaluation.samples.request import Wanted
from rfjax.files import write_whole
from rfjax.outputs import check_output, is_json_with
from rfjax.training.processes import distributed

AT_ONCE = 64  # images or clips of a batch, at most


def sample_picture(
    workdir: Path, overrides: Mapping[str, object], wanted: Wanted, *, prompts: Sequence[str], out: Path
) -> Path:
    """Writes a file with a row per caption (`formats`), and a JSON file with the settings beside it; returns `out`. A
    run on clips gives clips, unless `wanted.latent_size` asks for stills.

    Raises `ConfigError` for settings that cannot be used."""
    written = find_format(out)
    facts_file = out.with_suffix(".json")
    ours = is_json_with("run", "step", "sampler", "prompts", "latent_size")
    for path in (out, facts_file):
        check_output(path, "--out", made_here=lambda _: ours(facts_file))
    run = request.open_for_sampling(workdir, overrides, wanted)
    step = run.choose_step(wanted.step)
    shape, samples = request.latents_shape(run, wanted.latent_size, clips=True), wanted.samples
    if written.moves and shape[0] == 1:
        given = f"--out is {out}, and {run.name} gives images"
        raise ConfigError(
            f"{given}; name a .png or .npy" + (", or leave --latent-size out" if wanted.latent_size else "")
        )
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
    if shape[0] > 1:
        clips = run.corpus.to_clips(latents)
    else:
        clips = run.corpus.to_images(latents)[:, None]
    samples_of = clips.reshape(len(prompts), samples, *clips.shape[1:])
    facts = request.what_made_them(run, step, wanted, shape) | {
        "latent_size": list(shape[1:3]),
        "prompts": list(prompts),
    }
    write_whole(
        {out: written.write(samples_of, frame_rate(run.corpus)), facts_file: json.dumps(facts, indent=1) + "\n"}
    )
    return out
