"""Folders of small images to compare: a side for each name, an image for each prompt."""

from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

PROMPTS = [f"a picture of thing {number}" + ' with "HELLO" on it' * (number % 5 == 0) for number in range(12)]
MARK = "MADE-BY"  # in each image's PNG text and EXIF, with the side's name


def write_sides(folder: Path, names: list[str], side: int = 32) -> Path:
    """Writes `names` as folders with images 00000.png and so on, and prompts.txt beside them; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir()
        for number in range(len(PROMPTS)):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            text = PngImagePlugin.PngInfo()
            text.add_text("parameters", f"{MARK}-{name}")
            exif = image.getexif()
            exif[0x010E] = f"{MARK}-{name}"
            image.save(folder / name / f"{number:05d}.png", pnginfo=text, exif=exif)
    return folder
