"""Pictures of one colour, whose caption names the colour: a picture under another's caption is seen at once."""

import io

from PIL import Image

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 160, 20),
    "blue": (20, 20, 220),
    "yellow": (230, 220, 20),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}


def picture(colour: str, form: str = "PNG", side: int = 32) -> bytes:
    """The encoded picture of a colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour]).save(buffer, form)
    return buffer.getvalue()


def colour_of(image: bytes) -> str:
    """The colour that a picture is of."""
    pixel = Image.open(io.BytesIO(image)).convert("RGB").resize((1, 1)).getpixel((0, 0))
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(pixel, COLOURS[name], strict=True)))
