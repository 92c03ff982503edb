"""What a score leaves out of a folder of images: counted by reason, and used + left out = what came in."""

import json

import numpy as np
from PIL import Image

from rfjax.evaluation.image_folders import geneval_folder
from rfjax.scorers import folder_features
from rfjax.scorers.folder_features import images_of, of_folder


def write_images(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def test_features_of_a_folder_say_what_was_not_read(tmp_path, capsys):
    """Catches hidden copies and grids that leave a distance without a count in its record."""
    names = ["a.png", "b/c.JPG", ".hidden/d.png", "b/.ipynb_checkpoints/c.png", "00000/grid.png", "__MACOSX/._a.png"]
    write_images(tmp_path / "in", names[:-1])
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    found = images_of(tmp_path / "in")
    said = capsys.readouterr().err
    assert [path.name for path in found.paths] == ["a.png", "c.JPG"]
    assert sum(found.left_out.values()) == 4 and "grid.png" in said and "gone.png" in said and ".hidden/" in said
    embed = lambda paths: np.ones((len(paths), 3), np.float32)  # noqa: E731
    features = of_folder(tmp_path / "in", tmp_path / "out", "m", embed, name="n", batch_size=2)
    assert folder_features.facts(features)["left_out"] == found.left_out and features.n == 2


def test_a_folder_of_geneval_says_what_is_no_image_of_a_prompt(tmp_path):
    row = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    names = ["00000/samples/0000.png", "00000/samples/0001.jpg", "00000/samples/copy of 0000.png", "old/samples/0.png"]
    write_images(tmp_path, names)
    (tmp_path / "00000/metadata.jsonl").write_text(json.dumps(row))
    found = geneval_folder.read(tmp_path)
    assert len(found.samples) == 1
    assert {reason: len(some) for reason, some in found.left_out.items()} == {
        "files in samples/ whose name is no image's number": 2,
        "folders whose name is no prompt's number": 1,
    }
