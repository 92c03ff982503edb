"""Makes a preference study: samples the runs, reads all sides' images, and writes the study, its key and the pages.

DIR/samples/NAME/     the images sampled from a run; after an interruption, the same command samples the missing ones
DIR/study.json        the pairs and questions, without the name of any run
DIR/key.json          which run made which image; raters must not see it
DIR/pages/            the pages for the raters
DIR/votes/            an empty folder for the raters' files
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rfjax.compare import pictures
from rfjax.compare.design import Wish, draw, make_study
from rfjax.compare.pages import IMAGES, pages_of
from rfjax.compare.pictures import Picture
from rfjax.compare.prompts import choose, read_prompts
from rfjax.compare.sides import SAMPLES, Side, find_images, samples_folder
from rfjax.compare.study_files import (
    KEY,
    PAGES,
    QUESTIONS,
    STUDY,
    VOTES,
    Name,
    Prompt,
    Study,
    read_study,
    write_study,
)
from rfjax.errors import ConfigError
from rfjax.files import folder_moved_when_whole, remove_left_behind, write_whole
from rfjax.outputs import check_output_folder, is_json_with

MOST_PAIRS = 100  # most pairs for a rater, unless --pairs is given
LEAST_PAGE = 1_000_000  # the smallest --page-mb, in bytes


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks `rfjax compare` for. Raises `ConfigError` for numbers and names that cannot be used."""

    sides: tuple[Path, ...]
    prompts: Path
    out: Path
    choose: int | None = None
    raters: int = 5
    pairs: int | None = None
    checks: float = 0.1
    questions: tuple[str, ...] = ()
    seed: int = 0
    quality: int = 90
    page_bytes: int = 40_000_000
    beside: bool = False
    step: int | None = None
    weights: str = "ema"

    def __post_init__(self):
        least = {"raters": 1, "pairs": 1, "checks": 0, "seed": 0, "quality": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"--{name} is {value}; it must be at least {low}")
        if self.page_bytes < LEAST_PAGE:
            raise ConfigError(f"--page-mb is {self.page_bytes / 1e6:g}; it must be at least {LEAST_PAGE / 1e6:g}")
        for name in self.questions:
            if name not in QUESTIONS:
                raise ConfigError(f"--questions has {name!r}; the questions are {', '.join(QUESTIONS)}")
        if len(self.sides) < 2:
            raise ConfigError(f"rfjax compare was given {self.sides[0]} alone; give two runs or folders, or more")


def make(request: Request, overrides: Mapping[str, object]) -> list[str]:
    """Makes the study. Returns lines for the console that say what the study holds and what to do next.

    After an interruption, the same command finishes the work. Raises `ConfigError` for sides that cannot be compared,
    and if the folder `request.out` holds another study, because votes for that study would no longer count.
    """
    out, lines = request.out, []
    made_here = functools.partial(_is_study, is_json_with("schema", "study", "pairs"))
    own = (STUDY,)
    check_output_folder(
        out, "--out", reads=request.sides, own=own, files=(STUDY, KEY, PAGES, SAMPLES), made_here=made_here
    )
    prompts, repeated = read_prompts(request.prompts)
    lines += [f"{repeated:,} rows of {request.prompts} are empty or repeat a prompt: left out"] * bool(repeated)
    prompts = choose(prompts, request.choose, functools.partial(draw, request.seed, "choose"))
    lines += remove_left_behind(out)
    sides = _sides(request, overrides, prompts)
    found: dict[str, dict[int, Picture]] = {}
    for side in sides:
        paths, passed_over = find_images(side, prompts)
        lines += [f"{side.name}: not used: {line}" for line in passed_over]
        found[side.name] = {
            place: pictures.look_at(path, path.relative_to(side.folder).as_posix()) for place, path in paths.items()
        }
    wish = _wish(request, len(prompts), len(sides))
    webp = {"quality": request.quality, "lossless_below": pictures.LOSSLESS_BELOW}
    study, key, shown = make_study(wish, prompts, found, {side.name: side.facts for side in sides}, webp)
    if (out / STUDY).exists() and (before := read_study(out)) != study:
        made = study.study if study.study != before.study else "one of the same id with other pairs"
        raise ConfigError(
            f"{out} has the study {before.study}, and this command makes {made}, for which its votes do not count; "
            "give another --out"
        )
    write_study(out, study, key)
    (out / VOTES).mkdir(exist_ok=True)
    written = _write_pages(request, study, shown)
    return lines + _describe(request, study, found, key.runs, written)


def _is_study(is_ours, folder: Path) -> bool:
    """Whether a folder holds a study, or an unfinished study of an interrupted command. `is_ours(file)` says whether a
    study.json is one that rfjax wrote."""
    if (folder / STUDY).exists():
        return is_ours(folder / STUDY)
    return (folder / SAMPLES / PROMPTS).is_file() and not any((folder / name).exists() for name in (KEY, PAGES))


PROMPTS = "prompts.txt"  # in the folder SAMPLES: the prompts that the runs were sampled for, one in each line


def _sides(request: Request, overrides: Mapping[str, object], prompts: Sequence[Prompt]) -> list[Side]:
    """Samples images from the sides that are runs. Returns all sides of the study, both runs and folders.

    Raises `ConfigError` if two sides have the same name; if the folder SAMPLES was begun for other prompts; if a side
    is a run and the sides' images differ in size (`make_study` compares the sizes of folders alone); and if no side is
    a run and options for sampling are given.
    """
    runs = [folder for folder in request.sides if (folder / "run.json").is_file()]
    if not runs and (overrides or request.step is not None):
        raise ConfigError("no side is a run, so nothing is sampled; leave out --step and --config.*")
    if runs:
        file = request.out / SAMPLES / PROMPTS
        text = "".join(prompt.prompt + "\n" for prompt in prompts)
        if file.is_file() and file.read_text("utf-8") != text:
            raise ConfigError(f"{request.out / SAMPLES} was begun for other prompts; give another --out, or remove it")
        _check_sizes(request, overrides, runs, prompts)
        write_whole({file: text})
    sides: list[Side] = []
    for folder in request.sides:
        side = _sampled(request, overrides, folder) if folder in runs else _folder(folder)
        if other := next((one for one in sides if one.name == side.name), None):
            raise ConfigError(
                f"{other.facts['given']} and {folder} are both called {side.name}; sample one into a folder with "
                "another name (rfjax sample --layout numbered), and give that"
            )
        sides.append(side)
    return sides


def _folder(folder: Path) -> Side:
    return Side(folder.resolve().name, folder, {"given": str(folder)})


def _check_sizes(request: Request, overrides: Mapping[str, object], runs: Sequence[Path], prompts) -> None:
    """Raises `ConfigError` if two sides differ in the size of their images, before anything is sampled. In a folder of
    images, only the first prompt's image is read here; `design.make_study` compares all images later."""
    from rfjax.evaluation.samples.request import image_size, open_for_sampling

    wanted, sizes = _wanted(request), {}
    for folder in request.sides:
        if folder in runs:
            height, width = image_size(open_for_sampling(folder, overrides, wanted), wanted)
        else:
            path = find_images(_folder(folder), prompts)[0][prompts[0].id]
            width, height = pictures.read(path).size
        sizes[folder] = f"{width} x {height}"
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{folder} {size}" for folder, size in sizes.items())
        raise ConfigError(
            f"the sides have images of different sizes, by which raters could tell them apart: {listed}; sample each "
            "into a folder (rfjax sample --layout numbered), resize the images to one size, and give the folders"
        )


def _wanted(request: Request):
    from rfjax.evaluation.samples.request import Wanted

    return Wanted(step=request.step, weights=request.weights, samples=1, negative=None, seed=request.seed)


def _sampled(request: Request, overrides: Mapping[str, object], folder: Path) -> Side:
    from rfjax.evaluation.samples.folder import FACTS, sample_folder
    from rfjax.inputs.json_files import read_json
    from rfjax.training.run_folder import read_name

    name = str(read_name(folder)["run"])
    out, file = samples_folder(request.out, name), request.out / SAMPLES / PROMPTS
    sample_folder(folder, overrides, _wanted(request), prompts_file=file, layout="numbered", out=out)
    return Side(name, out, {"given": str(folder)} | read_json(out / FACTS, error=ConfigError))


def _wish(request: Request, prompts: int, sides: int) -> Wish:
    everything = prompts * sides * (sides - 1) // 2
    return Wish(
        seed=request.seed,
        raters=request.raters,
        pairs=min(everything, MOST_PAIRS) if request.pairs is None else request.pairs,
        checks=request.checks,
        questions=_names(request.questions or QUESTIONS),
    )


def _names(wanted: Sequence[str]) -> tuple[Name, ...]:
    return tuple(name for name in QUESTIONS if name in wanted)


def _write_pages(request: Request, study: Study, shown: Mapping[str, Picture | None]) -> dict[str, int]:
    """Writes the pages, and returns {page: its size in bytes}."""
    prompt_of = {image: pair.prompt for pair in study.pairs for image in pair.images}
    sizes = {prompt_of[image]: one.size for image, one in shown.items() if one is not None and image in prompt_of}

    @functools.cache
    def webp_of(image: str) -> bytes:
        picture = shown[image]
        made = (
            pictures.noise(bytes.fromhex(image), sizes[prompt_of[image]])
            if picture is None
            else pictures.read(picture.path)
        )
        return pictures.webp(made, request.quality)

    folder, written = request.out / PAGES, {}
    shutil.rmtree(folder, ignore_errors=True)  # pages that the same command made
    with folder_moved_when_whole(folder) as temporary:
        for rater in study.raters:
            for name, text in pages_of(study, rater, webp_of, most_bytes=request.page_bytes, beside=request.beside):
                write_whole({temporary / name: text})
                written[name] = len(text.encode())
        if request.beside:
            for image in prompt_of:
                write_whole({temporary / IMAGES / f"{image}.webp": webp_of(image)})
    return written


def _describe(
    request: Request,
    study: Study,
    found: Mapping[str, Mapping[int, Picture]],
    runs: Mapping[str, str],
    written: Mapping[str, int],
) -> list[str]:
    by_id = {pair.pair: pair for pair in study.pairs}
    shown = [by_id[name] for pairs in study.assigned.values() for name in pairs]
    asked = Counter(pair.pair for pair in shown if pair.check is None)
    checks = sum(pair.check is not None for pair in shown)
    votes = max(sum(len(by_id[name].questions) for name in pairs) for pairs in study.assigned.values())
    two = len(runs) * (len(runs) - 1) // 2
    equal = sum(len({some[prompt.id].sha256 for some in found.values()}) < len(found) for prompt in study.prompts)
    often = f"{min(asked.values())}" if min(asked.values()) == max(asked.values()) else "1 to {}"
    lines = [
        f"sides: {', '.join(sorted(runs.values()))}",
        f"pairs: {len(asked):,} of {len(study.prompts) * two:,} ({two} of two sides x {len(study.prompts):,} prompts), "
        f"each shown to {often.format(max(asked.values()))} of {len(study.raters)} raters; {checks:,} checks",
        f"a rater answers at most {votes:,} questions",
        f"pages: {len(written)} in {request.out / PAGES}, the largest {max(written.values()) / 1e6:.1f} MB "
        f"(WebP, quality {request.quality}; below {pictures.LOSSLESS_BELOW} pixels lossless)",
    ]
    if equal:
        lines.insert(1, f"warning: {equal:,} prompts have two images with the same pixels; raters can only call a tie")
    if unseen := len(study.prompts) * two - len(asked):
        lines.insert(2, f"{unseen:,} pairs are shown to nobody; more --raters or --pairs reach them")
    whole = f"the whole folder {PAGES}" if request.beside else "one page, or its numbered pages,"
    lines += [
        f"give each rater {whole} and keep {request.out / KEY}",
        f"put the votes that come back into {request.out / VOTES}, then: rfjax votes {request.out}",
    ]
    return lines
