"""Folders as users have them: what is read, and that all else is counted and named."""

import os

from rfjax.inputs.walk import walk_files


def test_a_folder_with_everything_in_it(tmp_path):
    for name in (
        "b.jpg",
        "a/c.JPG",
        "a/.ipynb_checkpoints/c.jpg",
        ".trash/b.jpg",
        "__MACOSX/b.jpg",
        "a/._c.jpg",
        "n.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.jpg").write_bytes(b"xy")
    (tmp_path / "0linked").symlink_to(elsewhere)
    (tmp_path / "0again").symlink_to(tmp_path / "a")  # sorts before the folder itself
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to("nothing")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "self").symlink_to("self")
    os.mkfifo(tmp_path / "pipe.jpg")
    walk = walk_files(tmp_path, {".jpg"})
    assert walk.files == (("0linked/d.jpg", 2), ("a/c.JPG", 1), ("b.jpg", 1))
    assert walk.passed_over == {
        "folders of the system": ("__MACOSX/",),
        "hidden files": ("a/._c.jpg",),
        "hidden folders": (".trash/", "a/.ipynb_checkpoints/"),
        "links to a folder that is read already": ("0again/", "a/loop/"),
        "names of no file (a device)": ("zero.jpg",),
        "names of no file (a link to nothing)": ("gone.jpg",),
        "names of no file (a pipe)": ("pipe.jpg",),
    }
    assert "2 hidden folders: .trash/, a/.ipynb_checkpoints/" in walk.describe_passed_over()
    assert walk_files(tmp_path, {".jpg"}, deep=False).names == ("b.jpg",)
