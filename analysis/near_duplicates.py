"""Measures precision and recall of `rfjax duplicates` against its threshold, and the matches that clustering misses.

    pip install -e '.[test,prepare]'
    python analysis/near_duplicates.py [--distractors 5000]

The images are photographs of scikit-image and scikit-learn, quarters of these photographs, and distinct rendered
scenes. Copies of several kinds are added (`tests/helpers/planted_duplicates.py`). All images go through the command's
own decoding, descriptors, index and removal. Two descriptors are used: `phash`, and an untrained ONNX model (averages
of 8 x 8 squares minus their mean, with `--mirrored`), which tests the path of a model but not a real model's quality.
The script writes analysis/results/near_duplicates/curve.csv and clusters.csv, and the picture of docs/prepare.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import photographs  # noqa: E402
from helpers import planted_duplicates as planted  # noqa: E402
from rfjax.duplicates import descriptors, search  # noqa: E402
from rfjax.files import write_whole  # noqa: E402
from rfjax.prepare import images  # noqa: E402

RESULTS = ROOT / "analysis/results/near_duplicates"
PICTURE = ROOT / "docs/pictures/near_duplicates.png"
SCENES, COPIED_SCENES = 600, 100
ALIKE_QUARTERS = ("hubble", "moon", "retina")  # their quarters look alike, some mirrored
THRESHOLDS = [round(0.5 + 0.025 * step, 3) for step in range(20)]
PROBES = (1, 2, 4, 8, 16)


def originals():
    """Returns (photographs, their quarters and scenes, in this order; the number of photographs and quarters)."""
    whole = [planted.photograph(name) for name in photographs.FILES]
    large = [planted.photograph(name, 2 * planted.SIDE) for name in photographs.FILES if name not in ALIKE_QUARTERS]
    quarters = [planted.crop(image, 0.5, x, y) for image in large for x in (0, 1) for y in (0, 1)]
    scenes = planted.distinct_scenes(SCENES)
    pictures = whole + quarters
    return pictures + scenes, len(pictures)


def described(descriptor, pictures):
    found = []
    for start in range(0, len(pictures), 64):
        squares = [
            images.decode(planted.png(image), descriptor.height, "lanczos").pixels
            for image in pictures[start : start + 64]
        ]
        found.append(descriptor.describe(np.stack(squares)))
    return np.concatenate(found)


def curve(name, views, group, kinds, counts):
    """Returns a row for each threshold: the precision; the recall of all copies, of those of photographs, of those of
    scenes, and of each kind of copy of photographs; and the images that were dropped wrongly."""
    index = search.Index(views[:, 0], 1, 1)
    first, pictures = counts
    rows = []
    for one in search.remove(views, index, THRESHOLDS):
        precision, recall, right = planted.judged(one.keeper, group)
        of_photographs, gone = group < pictures, one.keeper >= 0
        row = {
            "descriptor": name,
            "threshold": one.threshold,
            "dropped": int(gone.sum()),
            "precision": precision,
            "recall": recall,
        }
        for label, mine in (("photographs", of_photographs), ("scenes", ~of_photographs)):
            row[f"recall {label}"] = right[mine & (np.arange(len(group)) >= first)].mean()
            row[f"wrong {label}"] = int((gone & ~right & mine).sum())  # dropped for an image of another original
        for kind in planted.KINDS:
            row[kind] = right[first:][(kinds == kind) & of_photographs[first:]].mean()
        rows.append(row)
    return rows


def clusters_lose(name, views, group, distractors, threshold):
    """Measures what clustering misses. Returns a row for one cluster, and a row for each number of clusters searched
    (`PROBES`): of the images that are dropped with one cluster, the share that is also dropped then. `distractors` are
    views of further images."""
    every = np.concatenate([views, distractors])
    rows, found = [], {}
    for clusters in (1, round(2 * np.sqrt(len(every)))):
        for probes in PROBES if clusters > 1 else (1,):
            (removal,) = search.remove(every, search.Index(every[:, 0], clusters, probes), [threshold])
            found[clusters, probes] = removal.dropped
            share = (removal.dropped & found[1, 1]).sum() / found[1, 1].sum()
            copies = removal.dropped[: len(group)][len(set(group.tolist())) :].mean()
            rows.append(
                {
                    "descriptor": name,
                    "images": len(every),
                    "clusters": clusters,
                    "probes": probes,
                    "threshold": threshold,
                    "of one cluster's": share,
                    "copies dropped": copies,
                }
            )
    return rows


def table(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {
            key: f"{value:.4f}" if isinstance(value, float) and key != "threshold" else value
            for key, value in row.items()
        }
        for row in rows
    )
    return text.getvalue()


def picture(rows, marked):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["descriptor"] for row in rows))
    figure = Figure(figsize=(6.4 * len(names), 4.6), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), number)
        mine = [row for row in rows if row["descriptor"] == name]
        x = [row["threshold"] for row in mine]
        axes.plot(x, [row["precision"] for row in mine], color="black", linewidth=2.5, label="precision")
        axes.plot(
            x, [row["recall"] for row in mine], color="black", linewidth=2.5, linestyle="--", label="recall, all copies"
        )
        for kind in planted.KINDS:
            axes.plot(x, [row[kind] for row in mine], linewidth=1, label=f"recall, photographs: {kind}")
        if name in marked:
            axes.axvline(marked[name], color="grey", linewidth=1)
            axes.text(marked[name], 0.02, " default", color="grey")
        axes.set(xlabel="threshold of similarity", ylabel="share", ylim=(0, 1.02), title=name)
    figure.get_axes()[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--distractors", type=int, default=5000, help="scenes added to measure what clustering misses (default 5000)"
    )
    args = parser.parse_args()
    first, pictures = originals()
    copies = planted.plant(first[:pictures]) + [
        (kind, pictures + number, copy)
        for kind, number, copy in planted.plant(first[pictures : pictures + COPIED_SCENES])
    ]
    group = np.array([*range(len(first)), *(number for _, number, _ in copies)])
    kinds = np.array([kind for kind, _, _ in copies])
    everything = first + [copy for _, _, copy in copies]
    beside = planted.any_scenes(args.distractors, seed=1)
    rows, lost = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = descriptors.Model(
            str(planted.thumbnail_model(Path(folder, "thumbnail.onnx"))),
            side=None,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            output=None,
            mirrored=True,
        )
        for name, descriptor in (("phash", descriptors.Phash()), ("8x8 averages (ONNX)", model)):
            views = described(descriptor, everything)
            usable = ~np.isin(np.arange(len(views)), list(descriptors.incomparable(views[:, 0])))
            print(f"{name}: {len(first)} originals, {len(copies)} copies, {(~usable).sum()} not compared", flush=True)
            rows += curve(name, views, group, kinds, (len(first), pictures))
            threshold = descriptor.threshold if name == "phash" else 0.95
            lost += clusters_lose(name, views, group, described(descriptor, beside), threshold)
    write_whole(
        {
            RESULTS / "curve.csv": table(rows),
            RESULTS / "clusters.csv": table(lost),
            PICTURE: picture(rows, {"phash": descriptors.PHASH_THRESHOLD}),
        }
    )
    print((RESULTS / "curve.csv").read_text())
    print((RESULTS / "clusters.csv").read_text())


if __name__ == "__main__":
    main()
