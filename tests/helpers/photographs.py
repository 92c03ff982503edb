"""Real photographs that scikit-image's and scikit-learn's packages hold, written as the sources a user has."""

import io
import json
import tarfile
from pathlib import Path

import skimage
import sklearn
from PIL import Image

SKIMAGE, SKLEARN = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
FILES = {
    "astronaut": (SKIMAGE / "astronaut.png", "a portrait of an astronaut in an orange suit"),
    "brick": (SKIMAGE / "brick.png", "a wall of bricks"),
    "camera": (SKIMAGE / "camera.png", "a man with a camera on a tripod"),
    "chelsea": (SKIMAGE / "chelsea.png", "a tabby cat looks at you"),
    "china": (SKLEARN / "china.jpg", "a temple among trees"),
    "coffee": (SKIMAGE / "coffee.png", "a cup of coffee with a spoon"),
    "coins": (SKIMAGE / "coins.png", "old coins in rows"),
    "flower": (SKLEARN / "flower.jpg", "an orange dahlia"),
    "grass": (SKIMAGE / "grass.png", "grass seen from above"),
    "gravel": (SKIMAGE / "gravel.png", "gravel"),
    "hubble": (SKIMAGE / "hubble_deep_field.jpg", "galaxies far away"),
    "ihc": (SKIMAGE / "ihc.png", "tissue under a microscope"),
    "left": (SKIMAGE / "motorcycle_left.png", "a motorcycle in a garage"),
    "moon": (SKIMAGE / "moon.png", "craters on the moon"),
    "retina": (SKIMAGE / "retina.jpg", "the retina of an eye"),
    "rocket": (SKIMAGE / "rocket.jpg", "a rocket on its launch pad"),
}


def encoded(name, side=96):
    """A photograph's PNG bytes, its shorter side `side` pixels so that tests are quick."""
    image = Image.open(FILES[name][0]).convert("RGB")
    scale = side / min(image.size)
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def columns(name):
    """What a .json beside a photograph says."""
    number = sorted(FILES).index(name)
    return {"aesthetic": 3.0 + number / 4, "nsfw": "UNLIKELY", "by_model": [f"a picture of {name}", f"{name}, sharp"]}


def write_folder(folder, names=tuple(FILES)):
    for name in names:
        path = folder / "sub" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(name))
        path.with_suffix(".txt").write_text(FILES[name][1])
        path.with_suffix(".json").write_text(json.dumps(columns(name)))
    return folder


def add_member(tar, name, data, **changed):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in changed.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def write_tars(folder, names=tuple(FILES), each=8):
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(names), each):
        with tarfile.open(folder / f"{start // each:05}.tar", "w") as tar:
            for name in names[start : start + each]:
                add_member(tar, f"{name}.png", encoded(name))
                add_member(tar, f"{name}.txt", FILES[name][1].encode())
                add_member(tar, f"{name}.json", json.dumps(columns(name)).encode())
    return folder


def write_parquet(path, names=tuple(FILES), rows_a_group=5):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": encoded(name), "path": name}, "caption": FILES[name][1], **columns(name)} for name in names
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_a_group)
    return path
