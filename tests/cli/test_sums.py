"""Nothing leaves a number in silence: through the verbs, what came in = what is used + what is named as left out.

The count of each stands in JSON, and its reason on the console. Sources in hundreds of forms, tables and sets
of tensors are in test_fuzz_sources.py, test_fuzz_tables.py and test_fuzz_keys.py; runs in test_report.py; folders of
images in test_left_out.py.
"""

import json

import pytest

from helpers.coloured_pictures import COLOURS, picture
from helpers.stand_ins import prepare, recaption
from rfjax.cli import main
from rfjax.evaluation.geneval.files import score_files

LEFT = {"broken.png", "copy/.trash/a.png", "loop"}


@pytest.fixture
def untidy(tmp_path):
    """Six pictures of six colours, one that is broken, one without a caption, a hidden folder and a link in a loop."""
    root = tmp_path / "images"
    (root / "copy" / ".trash").mkdir(parents=True)
    for colour in COLOURS:
        (root / f"{colour}.png").write_bytes(picture(colour))
        (root / f"{colour}.txt").write_text(f"a {colour} square")
    (root / "broken.png").write_bytes(b"\x89PNG")
    (root / "broken.txt").write_text("broken")
    (root / "silent.png").write_bytes(picture("red"))
    (root / "copy" / ".trash" / "a.png").write_bytes(picture("red"))
    (root / "loop").symlink_to(root)
    return root


def total(*counts):
    return sum(sum(each.values()) for each in counts)


def test_prepare(untidy, tmp_path, monkeypatch, capsys):
    assert prepare(monkeypatch, untidy, f"--out={tmp_path / 'out'}", "--corrupt-limit=1") == 0
    facts, said = json.loads((tmp_path / "out/manifest.json").read_text()), capsys.readouterr()
    used = sum(facts["splits"][split]["images"] for split in facts["splits"])
    assert used == 6 and facts["dropped"] == {"corrupt": 1, "no caption": 1}
    assert used + total(facts["dropped"], facts["source"]["passed_over"]) == 6 + 2 + 2
    for words in ("1 corrupt", "1 no caption", ".trash/", "loop"):
        assert words in said.out + said.err


def test_recaption(untidy, tmp_path, monkeypatch, capsys):
    assert recaption(monkeypatch, untidy, f"--out={tmp_path / 'out'}", "--corrupt-limit=1") == 0
    facts, said = json.loads((tmp_path / "out/captions.json").read_text()), capsys.readouterr()
    assert facts["images"] == 7 and facts["dropped"] == {"corrupt": 1}
    assert facts["images"] + total(facts["dropped"], facts["source"]["passed_over"]) == 7 + 1 + 2
    for words in ("1 corrupt", ".trash/", "loop"):
        assert words in said.out + said.err


def test_duplicates(untidy, tmp_path, capsys):
    assert (
        main(["duplicates", str(untidy), f"--out={tmp_path / 'keys.tsv'}", "--descriptor=phash", "--uncaptioned"]) == 0
    )
    facts, said = json.loads((tmp_path / "keys.json").read_text()), capsys.readouterr()
    assert facts["images"] == 7 and facts["left_out"] == {"corrupt": 1}
    assert facts["images"] + total(facts["left_out"], facts["source"]["passed_over"]) == 7 + 1 + 2
    for words in ("1 corrupt", ".trash/", "loop"):
        assert words in said.out + said.err


def test_geneval(tmp_path):
    rows = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": f"a photo of a {name}"}
        for name in ("bench", "dog", "cup")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = [(0, 0), (0, 1), (2, 1)]
    lines = [{"prompt_index": row, "sample": sample, "detections": {}} for row, sample in images]
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    summary = score_files(tmp_path / "rows.jsonl", tmp_path / "found.jsonl", out, allow_missing=True)
    missing = 2 * len(summary["missing_prompts"]) + len(summary["missing_images"])
    assert summary["overall"]["images"] + missing == 3 * 2
    assert summary["missing_prompts"] == [1] and summary["missing_images"] == [[2, 0]]
