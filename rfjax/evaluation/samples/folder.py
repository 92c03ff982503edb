"""Samples images for a file of prompts, in a layout that scorers read: GenEval's, T2I-CompBench's or numbered.

Noise is a function of (seed, prompt, sample), so the images do not depend on the batches. The same command, given
again, makes the images that are missing. `OUT/generation.json` holds the settings that made the images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rfjax.errors import ConfigError
from rfjax.evaluation.generate import generator_of, prompt_ids, whole_batch
from rfjax.evaluation.geneval.files import read_metadata
from rfjax.evaluation.image_folders import compbench, geneval_folder, numbered
from rfjax.evaluation.pictures import png_bytes
from rfjax.evaluation.samples import request
from rfjax.evaluation.samples.request import Wanted
from rfjax.files import write_whole
from rfjax.inputs.json_files import read_json
from rfjax.inputs.text import read_text
from rfjax.outputs import check_output_folder
from rfjax.training.processes import distributed
from rfjax.training.progress import bar

FACTS = geneval_folder.GENERATION


class Layout(NamedTuple):
    """A layout of a folder of images: functions that read the prompts, name an image's path, and write images."""

    # (file of prompts) -> (prompts, rows of GenEval's metadata; [] if the file has plain prompts)
    read: Callable[[Path], tuple[list[str], list[dict]]]
    # (folder, prompts, index of the prompt, sample, samples of each prompt) -> path of the image
    path: Callable[[Path, Sequence[str], int, int, int], Path]
    # (folder, prompts, rows, images as (index, sample, PNG), samples of each prompt)
    write: Callable[[Path, Sequence[str], Sequence[dict], Sequence[tuple[int, int, bytes]], int], None]


def _read_metadata(file: Path) -> tuple[list[str], list[dict]]:
    rows = read_metadata(file)
    return [row["prompt"] for row in rows], rows


def _read_lines(file: Path) -> tuple[list[str], list[dict]]:
    """The prompts of a text file with one prompt a line. What follows a tab is ignored."""
    lines = read_text(file, "--prompts").split("\n")
    prompts = [line.split("\t")[0].strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{file} has no prompts; write a prompt a line")
    return prompts, []


def _read_names(file: Path) -> tuple[list[str], list[dict]]:
    prompts, rows = _read_lines(file)
    for prompt in prompts:
        compbench.image_name(prompt, 0)
    return prompts, rows


LAYOUTS = {  # the names that `rfjax sample --layout` takes
    "geneval": Layout(
        _read_metadata,
        lambda out, prompts, index, sample, samples: geneval_folder.image_path(out, index, sample),
        lambda out, prompts, rows, made, samples: geneval_folder.write(out, rows, made),
    ),
    "compbench": Layout(
        _read_names,
        lambda out, prompts, i, j, samples: Path(out) / "samples" / compbench.image_name(prompts[i], i * samples + j),
        lambda out, prompts, rows, made, samples: compbench.write(out, prompts, made, samples),
    ),
    "numbered": Layout(
        _read_lines,
        lambda out, prompts, index, sample, samples: numbered.image_path(out, index, sample),
        lambda out, prompts, rows, made, samples: numbered.write(out, prompts, made),
    ),
}


def read_prompts(file: Path, layout: str) -> tuple[list[str], list[dict]]:
    """Returns (prompts, rows of GenEval's metadata) of a file. With the layout "geneval" the file has JSON lines.
    Otherwise it is a text with one prompt a line (what follows a tab is ignored), and there are no rows.

    Raises `ConfigError` for a file of another form, and, with "compbench", for a prompt that no file name can hold.
    """
    return LAYOUTS[layout].read(file)


def sample_folder(
    workdir: Path, overrides: Mapping[str, object], wanted: Wanted, *, prompts_file: Path, layout: str, out: Path
) -> Path:
    """Makes the images that `out` lacks, on the run's devices, and returns `out`.

    Raises `ConfigError` for settings that cannot be used, and if `out` has images of other settings.
    """
    check_output_folder(out, "--out", reads=[prompts_file], own=(FACTS,))
    prompts, rows = read_prompts(prompts_file, layout)
    run = request.open_for_sampling(workdir, overrides, wanted)
    step = run.choose_step(wanted.step)
    shape, samples = request.latents_shape(run, wanted.latent_size), wanted.samples
    facts = request.what_made_them(run, step, wanted, shape, (len(prompts), samples))
    facts |= {"layout": layout, "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}
    ids = prompt_ids(len(prompts), samples)
    lacking = distributed.from_first(lambda: _lacking(out, facts, layout, prompts, ids, samples))
    ids = ids[np.array(lacking, int)]
    request.warn_of_unknown_words(run, prompts, wanted)
    if not len(ids):
        return out
    size = whole_batch(run, min(len(ids), run.config.evaluation.geneval.batch_size))
    generate = generator_of(run, run.config.evaluation.sampler, size, latent_shape=shape)
    against = None if wanted.negative is None else run.corpus.encode([wanted.negative])
    total = len(prompts) * samples
    with run.computing():
        params = run.restore_params(step, wanted.weights)
        with bar(total, f"{run.name} {step}", "image", done=total - len(ids), leave=True) as shown:
            for start in range(0, len(ids), size):  # each batch is written before the next
                chosen = ids[start : start + size]
                conditions = run.corpus.encode([prompts[index] for index in chosen[:, 0]])
                latents = generate(params, wanted.seed, chosen, conditions, against)
                if distributed.is_first():
                    images = np.clip(run.corpus.to_images(latents), 0.0, 1.0)
                    made = [(int(i), int(j), png_bytes(image)) for (i, j), image in zip(chosen, images, strict=True)]
                    LAYOUTS[layout].write(out, prompts, rows, made, samples)
                shown.update(len(chosen))
    return out


def _lacking(out, facts, layout, prompts, ids, samples):
    """Returns the indices in `ids` of the images that the folder `out` lacks.

    A new or empty folder gets the file `FACTS`. Raises `ConfigError` if the folder's `FACTS` differ from `facts`, and
    if a folder with files has no `FACTS`.
    """
    path = Path(out) / FACTS
    if path.exists():
        before = read_json(path, remedy=f"remove the folder {out} and sample again", error=ConfigError)
        for name, value in facts.items():
            if before.get(name) != value:
                begun = f"{out} was begun with {name} {before.get(name)!r}"
                raise ConfigError(f"{begun}, and this is {value!r}; give another --out")
    else:
        if Path(out).is_dir() and any(Path(out).iterdir()):
            raise ConfigError(f"{out} has files, and no {FACTS} that says what made them; give another --out")
        write_whole({path: json.dumps(facts, indent=1) + "\n"})
    path_of = LAYOUTS[layout].path
    return [place for place, (i, j) in enumerate(ids) if not path_of(out, prompts, int(i), int(j), samples).exists()]
