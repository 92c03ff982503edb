"""No verb writes over what it reads, nor over what it did not make: refused before any work, and nothing is changed."""

import json
import shutil
from pathlib import Path

import pytest

from helpers.child_process import ROOT
from rfjax.cli import main
from rfjax.errors import ConfigError
from rfjax.outputs import check_output, check_output_folder, is_json_with

FITS = ROOT / "tests" / "pinned" / "fit_parametric.json"


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """What a user has on disk: tables, pictures, a run, a corpus, a website, folders of images, a model."""
    files = {
        "table.csv": "run,loss,flops\na,2,10\nb,1.5,20\nc,1.2,40\n",
        "prices.json": '{"a100": 1}',
        "notes.html": "<p>mine",
        "photo.png": "a photograph",
        "run/config.json": "{}",
        "run/run.json": "{}",
        "corpus/manifest.json": "{}",
        "captions/captions.json": "{}",
        "site/index.html": "<p>mine",
        "study/results/table.json": "{}",
        "images/a.png": "",
        "images/rows.jsonl": "mine",
        "scored/results.jsonl": "mine",
        "model/model_index.json": "{}",
        "shapes.sh": "echo mine",
        "logs/metrics.jsonl": "mine",
        "results.jsonl": "by GenEval's own scripts",
        "keys.tsv": "a\n",
        "metadata.jsonl": "",
        "voted/study.json": "{}",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PREPARE = "prepare images --models=model"
SCORE = "score images --metric=cmmd --reference=scored --clip=model"
DUPLICATES = "duplicates images"
CASES = (
    (f"{PREPARE} --out=images/corpus", "--out images/corpus lies inside images, which this command reads"),
    ("fit table.csv --out=table.csv", "--out table.csv is what this command reads"),
    ("fit table.csv --out=prices.json", "--out prices.json is there, and this command did not make it"),
    ("fit table.csv --out=photo.png/x.json", "photo.png is no folder"),
    ("fit table.csv --out=images", "--out images is a folder; give the name of a file"),
    ("plan --config=shapes --target=v5e-16 --out=prices.json", "--out prices.json is there"),
    ("plan --config=shapes --target=v5e-16 --out=notes.json", "--out notes.html is there"),
    ("bench --config=shapes --json=prices.json", "--json prices.json is there"),
    ("bench --config=shapes --profile=run", "--profile run is the folder of a run"),
    ("sample run --prompt=cat --out=run/config.png", "--out run/config.json is there"),
    ("sample run --prompt=cat --out=photo.png", "--out photo.png is there"),
    ("sample run --prompts=metadata.jsonl --out=run", "--out run is the folder of a run"),
    ("sample run --prompts=metadata.jsonl --out=voted", "--out voted is a preference study"),
    ("compare images scored --prompts=keys.tsv --out=voted", "voted/study.json is there, and this command did not"),
    ("compare images scored --prompts=keys.tsv --out=images", "--out images is what this command reads"),
    ("compare images scored --prompts=keys.tsv --out=run", "--out run is the folder of a run"),
    ("inspect corpus --out=photo.png", "--out photo.png is there"),
    ("geneval --metadata=metadata.jsonl --detections=keys.tsv --out=keys.tsv", "is what this command reads"),
    ("geneval --metadata=metadata.jsonl --detections=keys.tsv --out=results.jsonl", "--out results.jsonl is there"),
    (f"{DUPLICATES} --out=corpus/manifest.tsv", "--out corpus/manifest.json is there"),
    (f"{DUPLICATES} --drop-keys=keys.tsv --out=keys.tsv", "--out and --drop-keys are both keys.tsv; give two files"),
    (f"{PREPARE} --out=images", "--out images is what this command reads"),
    (f"{PREPARE} --out=model", "--out model is what this command reads"),
    (f"{PREPARE} --out=run", "--out run is the folder of a run"),
    (f"{PREPARE} --out=corpus", "corpus/manifest.json is there, and this command did not make it"),
    (f"{PREPARE} --out=photo.png", "--out photo.png is a file"),
    ("recaption images --model=model --out=corpus", "--out corpus is a prepared corpus"),
    ("recaption images --model=model --out=captions", "captions/captions.json is there"),
    ("report study --out=site", "site/index.html is there"),
    ("report study --out=run", "run is the folder of a run"),
    (f"{SCORE} --out=images", "--out images is what this command reads"),
    (f"{SCORE} --out=run", "--out run is the folder of a run"),
    ("train --config=shapes --workdir=corpus", "--workdir corpus is a prepared corpus"),
    ("train --config=shapes --workdir=study", "--workdir study is the folder of a study"),
    ("train --config=shapes --workdir=logs", "logs/metrics.jsonl is there"),
    ("study --config=shapes --workdir=study/results", "--workdir study/results is a results table"),
    ("launch --config=shapes --on=slurm --gpus-per-node=0 --out=.", "--out shapes.sh is there"),
)


@pytest.mark.parametrize(("words", "message"), CASES, ids=lambda value: value[:60])
def test_an_output_replaces_nothing_of_the_users(disk, words, message, capsys):
    before = content_of(disk)
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert content_of(disk) == before


def test_the_same_command_again_replaces_what_it_made(disk, monkeypatch):
    """The mark is the content: the file may have been moved, and a file of the same name is not enough."""
    shutil.copy(FITS, "fits.json")
    answers = []
    monkeypatch.setattr("rfjax.report.fit_answers.answer", lambda args: answers.append(1) or ([], json.loads("{}")))
    assert main(["fit", "table.csv", "--out=fits.json"]) == 0 and answers
    made = is_json_with("source", "budgets")
    assert not made(Path("fits.json")) and made(FITS) and not made(Path("nothing")) and not made(disk)


def test_links_and_read_only_folders(tmp_path, monkeypatch):
    """Catches a link by which an input is written over, and a folder that turns out read-only after the work."""
    (tmp_path / "table.csv").write_text("x")
    (tmp_path / "link.json").symlink_to("table.csv")
    with pytest.raises(ConfigError, match="is what this command reads"):
        check_output(tmp_path / "link.json", "--out", reads=[tmp_path / "table.csv"], made_here=lambda path: True)
    (tmp_path / "nothing.json").symlink_to("gone")
    with pytest.raises(ConfigError, match="a link to nothing"):
        check_output(tmp_path / "nothing.json", "--out")
    with pytest.raises(ConfigError, match="too long a name"):
        check_output(tmp_path / ("x" * 240), "--out")
    monkeypatch.setattr("os.access", lambda *_: False)
    for check in (check_output, check_output_folder):
        with pytest.raises(ConfigError, match="read-only for you"):
            check(tmp_path / "new" / "out", "--out")
