"""Images of which it is known which are copies of which: photographs and rendered scenes, and copies planted by
kind."""

import dataclasses
import io

import numpy as np
from PIL import Image

from helpers import photographs
from rfjax.data import scenes, shapes

SIDE = 256  # the photographs' shorter side; scenes have half


def distinct_scenes(count, seed=0):
    """`count` rendered scenes, no two of which hold the same shapes of the same colours in the same cells, as they
    are or
    mirrored: the same objects moved by a few pixels are no distinct scene. Two that differ in one object's colour
    are, which a hash of luminance can tell only by where in their cells the objects lie."""
    rng = np.random.default_rng(seed)
    draws = 6 * count
    contents = scenes.draw_contents(shapes.VOCABULARY, rng.random((draws, scenes.CONTENT_SLOTS)))
    layout = scenes.place(contents, rng.random((draws, scenes.LAYOUT_SLOTS)))
    cells = np.where(layout.present, len(shapes.VOCABULARY.colors) * layout.classes + layout.colors, -1).tolist()
    first = {}
    for i, (a, b, c, d) in enumerate(cells):  # a b over c d
        first.setdefault(min((a, b, c, d), (b, a, d, c)), i)
    assert len(first) >= count
    return render(layout, sorted(first.values())[:count])


def any_scenes(count, seed):
    """Scenes as training draws them: many alike, some equal but for a few pixels."""
    rng = np.random.default_rng(seed)
    contents = scenes.draw_contents(shapes.VOCABULARY, rng.random((count, scenes.CONTENT_SLOTS)))
    return render(scenes.place(contents, rng.random((count, scenes.LAYOUT_SLOTS))), list(range(count)))


def render(layout, rows):
    some = scenes.Layout(**{field.name: getattr(layout, field.name)[rows] for field in dataclasses.fields(layout)})
    return [
        Image.fromarray(np.round(255 * pixels).astype(np.uint8)) for pixels in shapes.renderer(SIDE // 2)(some, "train")
    ]


def photograph(name, side=SIDE):
    return Image.open(io.BytesIO(photographs.encoded(name, side))).convert("RGB")


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def flip(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def crop(image, share, x, y):
    """`share` of each side, at x and y in [0, 1] of the room that is left."""
    width, height = round(share * image.width), round(share * image.height)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def noisy(image, rng):
    values = np.asarray(image, np.float64) + rng.normal(0, 6, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


# kind -> (image, generator) -> the copy
KINDS = {
    "JPEG, quality 30": lambda image, rng: jpeg(image, 30),
    "half the size, JPEG 60": lambda image, rng: jpeg(image.resize((image.width // 2, image.height // 2)), 60),
    "noise": noisy,
    "flip": lambda image, rng: flip(image),
    "flip, JPEG 50": lambda image, rng: jpeg(flip(image), 50),
    "centred crop, 0.8 to 1": lambda image, rng: crop(image, rng.uniform(0.8, 1), 0.5, 0.5),
    "centred crop, flip, JPEG 60": lambda image, rng: jpeg(flip(crop(image, rng.uniform(0.8, 1), 0.5, 0.5)), 60),
    "crop anywhere, 0.95": lambda image, rng: crop(image, 0.95, *rng.random(2)),
    "crop anywhere, 0.8 to 0.95": lambda image, rng: crop(image, rng.uniform(0.8, 0.95), *rng.random(2)),
}


def plant(originals, kinds=KINDS, seed=0):
    """[(kind, number of its original, copy)]"""
    rng = np.random.default_rng(seed)
    return [(kind, number, make(image, rng)) for kind, make in kinds.items() for number, image in enumerate(originals)]


def judged(keepers, group):
    """(precision, recall, which copies were dropped for one of their own) of a removal: `keepers` is -1 of what
    stays, `group` the original of each, originals first."""
    gone = keepers >= 0
    right = gone & (group[np.where(gone, keepers, 0)] == group)
    copies = len(group) - len(set(group.tolist()))
    return right.sum() / max(gone.sum(), 1), right.sum() / copies, right


def thumbnail_model(
    path, side=128, *, cells=8, inputs=("n", 3), outputs=1, kind=None, bias=0.0, flat_from=1, last=False, wide=1
):
    """A descriptor without training as ONNX: the image averaged in `cells` by `cells` squares, less its mean.

    With `last`, the channels are the last axis; the image is `wide` times as wide as high."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = kind or TensorProto.FLOAT
    inner = kind if kind == TensorProto.FLOAT16 else TensorProto.FLOAT
    dtype = helper.tensor_dtype_to_np_dtype(inner)
    size = 128 if isinstance(side, str) else side
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
        helper.make_node("Cast", ["planes"], ["cast"], to=inner),
        helper.make_node(
            "AveragePool", ["cast"], ["pooled"], kernel_shape=[size // cells] * 2, strides=[size // cells] * 2
        ),
        helper.make_node("ReduceMean", ["pooled", "space"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["pooled", "mean"], ["centred"]),
        helper.make_node("Flatten", ["centred"], ["flat"], axis=flat_from),
        helper.make_node("Add", ["flat", "bias"], ["descriptor"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "space"),
        numpy_helper.from_array(np.array([bias], dtype), "bias"),
    ]
    sides = [side, side if isinstance(side, str) else side * wide]
    shape = [inputs[0], *sides, inputs[1]] if last else [*inputs, *sides]
    given = [helper.make_tensor_value_info("image", kind, shape)]
    names = ["descriptor", "flat"][:outputs]
    found = [helper.make_tensor_value_info(name, inner, [None, None]) for name in names]
    graph = helper.make_graph(nodes, "thumbnail", given, found, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
