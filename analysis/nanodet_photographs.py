"""Builds the folder of forty photographs that NanoDet's record is about, in GenEval's layout.

    pip install scikit-image==0.26.0
    python analysis/nanodet_photographs.py data/photographs
    python analysis/nanodet.py data/photographs --out data/detections.jsonl
    rfjax geneval --metadata data/photographs/evaluation_metadata.jsonl --detections data/detections.jsonl \\
                  --out data/results.jsonl
    python analysis/nanodet_photographs.py data/photographs --results data/results.jsonl      # the table by kind

`analysis/results/nanodet/photographs.jsonl` names each photograph, its source, its SHA-256, and what was seen in it, as
a row of GenEval's metadata. The packages are fetched by npm and apt-get (or taken from --packages DIR). Transparent
pictures are laid over white.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import sys
from collections import Counter
from pathlib import Path

from packages import Package, fetch, read_members
from PIL import Image

LABELS = Path(__file__).parent / "results" / "nanodet" / "photographs.jsonl"
PACKAGES = {
    "face-api": Package(
        "npm",
        "@vladmandic/face-api@1.7.15",
        "vladmandic-face-api-1.7.15.tgz",
        "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
        "MIT; it says nothing of the photographs",
    ),
    "opencv-doc": Package(
        "apt-get",
        "opencv-doc=4.6.0+dfsg-12",
        "opencv-doc_4.6.0+dfsg-12_all.deb",
        "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        "Apache-2.0 and BSD-3-Clause",
    ),
    "tuxpaint-stamps": Package(
        "apt-get",
        "tuxpaint-stamps-default=2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
    ),
}
ABOUT = ("kind", "source", "file", "sha256")  # of a label; its other keys are GenEval's


def read_labels() -> list[dict]:
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]


def metadata(label: dict) -> dict:
    """A label's row of GenEval's metadata."""
    return {key: value for key, value in label.items() if key not in ABOUT}


def read_source(source: str, names: list[str], packages: Path) -> dict[str, bytes]:
    """{file's name: content} of a source: a package of `PACKAGES`, or the installed scikit-image."""
    if source in PACKAGES:
        return read_members(fetch(PACKAGES[source], packages), names)
    found = importlib.util.find_spec("skimage")
    folder = found and Path(found.origin).parent / "data"
    if not folder or not all((folder / name).is_file() for name in names):
        sys.exit("scikit-image's photographs are not installed: pip install scikit-image==0.26.0")
    return {name: (folder / name).read_bytes() for name in names}


def write(root: Path, labels: list[dict], packages: Path) -> None:
    """Writes the photographs and the metadata. Exits before writing if a photograph's SHA-256 is not the label's."""
    files = {}
    for source in sorted({label["source"] for label in labels}):
        names = [label["file"] for label in labels if label["source"] == source]
        files |= {(source, name): data for name, data in read_source(source, names, packages).items()}
    for label in labels:
        if hashlib.sha256(files[label["source"], label["file"]]).hexdigest() != label["sha256"]:
            sys.exit(f"{label['file']} of {label['source']} is another photograph than was labelled")
    for index, label in enumerate(labels):
        with Image.open(io.BytesIO(files[label["source"], label["file"]])) as image:
            picture = image.convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        folder = root / f"{index:05d}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        whole.save(folder / "samples" / "0000.png")
        (folder / "metadata.jsonl").write_text(json.dumps(metadata(label)) + "\n", encoding="utf-8")
    rows = "".join(json.dumps(metadata(label)) + "\n" for label in labels)
    (root / "evaluation_metadata.jsonl").write_text(rows, encoding="utf-8")
    print(f"{root}: {len(labels)} photographs")


def table(labels: list[dict], results: list[dict]) -> list[str]:
    """Lines of Markdown: right and wrong by kind and task, then each photograph that was judged wrong.

    The last number of a kind counts the photographs in which a class that the label does not name was found too, above
    the threshold. In a scene such an object may be there, in a cut-out it is not.
    """
    all_of, right, more = Counter(), Counter(), Counter()
    wrong = []
    for label, result in zip(labels, results, strict=True):
        key = label["kind"], label["tag"]
        all_of[key] += 1
        right[key] += result["correct"]
        more[key] += bool(set(json.loads(result["details"])) - {item["class"] for item in label["include"]})
        if not result["correct"]:
            reason = result["reason"].replace("\n", "; ")
            wrong.append(f"| {Path(label['file']).name} ({label['source']}) | {label['prompt']} | {reason} |")
    lines = ["| kind | task | photographs | judged right | another class found |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(key)} | {count} | {right[key]} | {more[key]} |" for key, count in all_of.items()]
    return [*lines, "", "| photograph | asked for | judged wrong because |", "|---|---|---|", *wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, metavar="DIR", help="the folder of photographs")
    parser.add_argument("--packages", type=Path, default=Path("data/packages"), metavar="DIR", help="packages' files")
    parser.add_argument("--results", type=Path, metavar="FILE.jsonl", help="print the table of rfjax geneval's results")
    args = parser.parse_args()
    if args.results is None:
        write(args.root, read_labels(), args.packages)
    else:
        results = [json.loads(line) for line in args.results.read_text(encoding="utf-8").splitlines()]
        print("\n".join(table(read_labels(), results)))


if __name__ == "__main__":
    main()
