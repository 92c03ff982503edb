"""Scores a study on the emoji corpus: do samples of held-out (name, style) pairs show the right name and style?

    python analysis/emoji_scores.py runs/emoji data/emoji --out scores

Every finished run samples the same PAIRS random held-out pairs, from their stored captions. Two linear discriminants,
which were fitted to the training images, judge the style and the name of each sample; a score is the share of samples
that they find right. The ceiling is the score of the real held-out pictures. The floor is the score of the samples
under captions of other samples. A sample counts as memorised if it is nearer to a training image than 95 % of the real
held-out pictures are. The result is scores.csv, with a row for each run and Wilson's 95 % intervals, and for each run a
sheet of samples of the styles whose licences permit it. A run that has a row and a sheet is not scored again.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer

SHRINKAGE = 0.3  # of the within-class covariance towards a multiple of the identity
NEAR = 5.0  # percentile of the real pictures' distances below which a sample counts as memorised
SEED = 0


@dataclass(frozen=True)
class Pictures:
    """Images of the corpus [n, 32, 32, 3] in [0, 1], with the name and the style of each."""

    images: Float[np.ndarray, "n side side 3"]
    names: np.ndarray
    styles: np.ndarray
    captions: tuple[str, ...]

    def only(self, kept: Bool[np.ndarray, " n"] | Integer[np.ndarray, " m"]) -> Pictures:
        captions = np.array(self.captions, object)[kept]
        return Pictures(self.images[kept], self.names[kept], self.styles[kept], tuple(captions))


def read_pictures(root: Path, side: int = 32) -> tuple[Pictures, Pictures]:
    """(training pictures, held-out pictures), decoded as `rfjax prepare` decodes them."""
    from rfjax.prepare.images import decode

    rows = [json.loads(line) for line in (root / "images/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = set((root / "held_out.txt").read_text(encoding="utf-8").splitlines())
    files = [(root / "images" / row["file_name"]).read_bytes() for row in rows]
    pixels = np.stack([decode(file, ((side, side),), "lanczos").pixels for file in files]).astype(np.float32) / 255
    names, styles = (np.array([row[field] for row in rows]) for field in ("name", "style"))
    every = Pictures(pixels, names, styles, tuple(row["caption"][0] for row in rows))
    held = np.array([row["file_name"] in keys for row in rows])
    return every.only(~held), every.only(held)


def coarse(images: Float[np.ndarray, "n side side 3"]) -> Float[np.ndarray, "n features"]:
    """Pixels averaged in 2x2 blocks: what is drawn, where, in which colours."""
    n, side = images.shape[:2]
    return images.reshape(n, side // 2, 2, side // 2, 2, 3).mean((2, 4)).reshape(n, -1)


def fine(images: Float[np.ndarray, "n side side 3"]) -> Float[np.ndarray, "n features"]:
    """How colours change between neighbours, and which colours there are: outlines, gradients, palettes."""
    grey = images.mean(-1)
    across, down = np.abs(np.diff(grey, axis=2))[:, 1:], np.abs(np.diff(grey, axis=1))[:, :, 1:]
    change = np.stack([across, down, np.sqrt(across), np.sqrt(down)], -1)
    n, side = grey.shape[0], change.shape[1]
    cells = np.pad(change, ((0, 0), (0, -side % 8), (0, -side % 8), (0, 0))).reshape(n, 4, 8, 4, 8, 4).mean((2, 4))
    steps = np.linspace(0, 1, 9)
    spread = [np.histogram(each, steps)[0] for image in images for each in image.reshape(-1, 3).T]
    strength = [np.histogram(np.sqrt(each), steps)[0] for each in across.reshape(n, -1)]
    counts = np.concatenate([np.reshape(spread, (n, -1)), np.reshape(strength, (n, -1))], 1) / grey[0].size
    return np.concatenate([cells.reshape(n, -1), np.sqrt(counts)], 1).astype(np.float32)


@dataclass(frozen=True)
class Discriminant:
    """A linear discriminant: called with images, it returns the class of each, the one with the nearest mean in the
    metric of the covariance within classes."""

    classes: np.ndarray
    means: Float[np.ndarray, "classes rank"]
    whitening: Float[np.ndarray, "features rank"]
    features: object

    @classmethod
    def fit(cls, features, images, labels: np.ndarray) -> Discriminant:
        x = features(images).astype(np.float64)
        classes, of = np.unique(labels, return_inverse=True)
        means = np.zeros((len(classes), x.shape[1]))
        np.add.at(means, of, x)
        means /= np.bincount(of)[:, None]
        within = x - means[of]
        covariance = within.T @ within / max(1, len(x) - len(classes))
        scale = np.trace(covariance) / len(covariance)
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        whitening = vectors / np.sqrt(values)
        return cls(classes, means @ whitening, whitening, features)

    def __call__(self, images) -> np.ndarray:
        x = self.features(images).astype(np.float64) @ self.whitening
        squares = (self.means**2).sum(1) - 2 * x @ self.means.T
        return self.classes[squares.argmin(1)]


def nearest(images: Float[np.ndarray, "n side side 3"], among: Float[np.ndarray, "m side side 3"]) -> np.ndarray:
    """Returns [n]: for each image, the root mean square difference, over pixels and channels, from the nearest image of
    `among`."""
    x, y = (each.reshape(len(each), -1).astype(np.float64) for each in (images, among))
    squares = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)
    return np.sqrt(np.maximum(squares.min(1), 0) / x.shape[1])


def shares(judge_style, judge_name, images, truth: Pictures) -> dict[str, float]:
    """Returns the shares of images that are judged to have the right style, the right name, and both; and, as floors,
    the shares that have the style and the name of another image's caption."""
    style, name = judge_style(images), judge_name(images)
    order = np.random.default_rng(SEED).permutation(len(images))
    right = {"style": style == truth.styles, "name": name == truth.names}
    floor = {"style_floor": style == truth.styles[order], "name_floor": name == truth.names[order]}
    found = right | {"both": right["style"] & right["name"]} | floor
    return {key: float(np.mean(value)) for key, value in found.items()}


def with_intervals(found: dict[str, float], count: int) -> dict[str, float]:
    """Returns `found`, which holds shares of `count` images, with more keys: `style_low`, `style_high` and so on, the
    ends of Wilson's 95 % intervals of style, name and both. The floors get no intervals."""
    from scipy.stats import binomtest

    ends = {}
    for key in ("style", "name", "both"):
        interval = binomtest(round(found[key] * count), count).proportion_ci(method="wilson")
        ends |= {f"{key}_low": interval.low, f"{key}_high": interval.high}
    return found | ends


def draw(run, pairs: int, batch_size: int) -> tuple[list[str], Float[np.ndarray, "n side side 3"]]:
    """Returns (captions, images) for `pairs` random validation examples, sampled by the run's newest checkpoint and its
    own sampler."""
    from rfjax.data.batch import Conditions
    from rfjax.evaluation.generate import generator_of, prompt_ids

    indices = np.random.default_rng(SEED).permutation(run.corpus.manifest.count("validation"))[:pairs]
    batch = run.corpus.examples(indices, "validation")
    conditions = Conditions(batch.context, batch.pooled)
    generate = generator_of(run, run.config.evaluation.sampler, batch_size)
    with run.computing():
        params = run.restore_params(run.choose_step(None), "ema")
        latents = generate(params, SEED, prompt_ids(len(indices), 1), conditions)
    return run.corpus.captions(indices, "validation"), run.corpus.to_images(latents)


def main() -> None:
    from rfjax import open_run
    from rfjax.evaluation.pictures import png_bytes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="the study's folder, or one run's")
    parser.add_argument("corpus", type=Path, help="the folder that analysis/emoji_corpus.py made")
    parser.add_argument("--out", type=Path, default=Path("scores"))
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=40)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    training, held = read_pictures(args.corpus)
    judges = (
        Discriminant.fit(fine, training.images, training.styles),
        Discriminant.fit(coarse, training.images, training.names),
    )
    place = {caption: number for number, caption in enumerate(held.captions)}
    ceiling = shares(*judges, held.images, held)
    real = nearest(held.images, training.images)
    print(f"ceiling, real held-out pictures: {ceiling}; distance to training {np.median(real):.3f}")
    folders = [args.study] if (args.study / "run.json").is_file() else sorted(args.study.iterdir())
    table = args.out / "scores.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline=""))) if table.is_file() else []
    scored = {row["run"] for row in rows if row["pairs"] == str(args.pairs)}
    rows = [row for row in rows if row["run"] in scored]
    for folder in folders:
        if folder.name in scored and (args.out / f"{folder.name}.png").is_file():
            continue
        facts = folder / "run.json"
        if (
            not facts.is_file()
            or json.loads(facts.read_text()).get("role") == "trunk"
            or not (folder / "status.json").is_file()
        ):
            continue
        if json.loads((folder / "status.json").read_text()).get("state") != "done":
            continue
        run = open_run(folder)
        captions, images = draw(run, args.pairs, args.batch_size)
        truth = held.only(np.array([place[caption] for caption in captions]))
        distance = nearest(images, training.images)
        seen = run.config.train.steps * run.config.train.batch_size
        row = {
            "run": folder.name,
            "params": run.parameter_count,
            "flops": run.flops_per_image * seen,
            "images": seen,
            "times_seen": seen / run.training_images,
            "pairs": len(images),
            **with_intervals(shares(*judges, images, truth), len(images)),
            **{f"{key}_ceiling": ceiling[key] for key in ("style", "name", "both")},
            "nearest": float(np.median(distance)),
            "nearest_real": float(np.median(real)),
            "memorised": float(np.mean(distance < np.percentile(real, NEAR))),
        }
        rows = [each for each in rows if each["run"] != folder.name]
        rows.append({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        print(rows[-1], flush=True)
        (args.out / f"{folder.name}.png").write_bytes(png_bytes(sheet(truth, images)))
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[-1], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def sheet(truth: Pictures, images, columns: int = 12, rows: int = 3) -> Float[np.ndarray, "height width 3"]:
    """Pairs of rows: the real picture above the sample of its caption, of permissively licensed styles alone."""
    from emoji_corpus import PERMISSIVE

    kept = np.flatnonzero(np.isin(truth.styles, PERMISSIVE))[: columns * rows]
    pad = lambda image: np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=1.0)  # noqa: E731
    lines = []
    for start in range(0, len(kept), columns):
        some = kept[start : start + columns]
        for source in (truth.images, images):
            cells = [pad(source[number]) for number in some]
            cells += [np.ones_like(cells[0])] * (columns - len(cells))
            lines.append(np.concatenate(cells, 1))
    if not lines:
        raise SystemExit(
            "none of the pairs is of a permissively licensed style, so there is no sheet; give more --pairs"
        )
    return np.repeat(np.repeat(np.concatenate(lines, 0), 2, 0), 2, 1)


if __name__ == "__main__":
    main()
