"""Reads the prompts of a preference study, chooses an even selection, and decides for which prompts raters are asked
about typography."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rfjax.compare.study_files import Name, Prompt
from rfjax.errors import ConfigError
from rfjax.inputs.text import read_text

WRITING = "Writing & Symbols"  # a challenge of PartiPrompts
# Text in quotes. A single quote counts only if no letter touches it on its outer side; otherwise it is an apostrophe.
QUOTED = re.compile(r"\"[^\"]+\"|“[^”]+”|„[^“”]+[“”]|«[^»]+»|(?<!\w)'[^']+'(?!\w)|‘[^’]+’(?!\w)")
# Words that ask for writing. Half of the prompts of "Writing & Symbols" ask only for symbols, such as a yin-yang sign.
WORDS = re.compile(
    r"\b(says?|saying|words?|letters?|lettering|writ(ten|es|ing)|text|spell(s|ed|ing)?)\b", re.IGNORECASE
)


def asks_for_text(prompt: Prompt) -> bool:
    """Whether a prompt asks for text in the image.

    A prompt with text in quotes does. A prompt whose challenge in PartiPrompts is "Writing & Symbols" also does if it
    has a word such as says, word or letters.
    """
    return bool(QUOTED.search(prompt.prompt) or prompt.challenge == WRITING and WORDS.search(prompt.prompt))


def questions_of(prompt: Prompt, asked: Sequence[Name]) -> list[Name]:
    """Returns the questions among `asked` that apply to a prompt. Typography applies only if the prompt asks for
    text."""
    return [name for name in asked if name != "typography" or asks_for_text(prompt)]


def plain(text: str) -> str:
    """Returns a prompt with each stretch of white space replaced by one space, and none at its ends. A prompt in the
    file of prompts and a prompt in a folder of images are the same if they are equal in this form."""
    return " ".join(text.split())


def read_prompts(file: Path) -> tuple[list[Prompt], int]:
    """Reads a file of prompts. Returns (its distinct prompts, the number of rows left out as empty or repeated).

    The file has one of three formats: PartiPrompts' table (separated by tabs, with the column `Prompt` and optionally
    `Category` and `Challenge`), JSON lines with `prompt` and optionally `tag` or `category` and `challenge`, or a text
    with a prompt in each line. A prompt's id is the number of its row, from 0; a header and a text's blank lines are no
    rows. Raises `ConfigError` for a line that cannot be used, naming the line, and for a file without prompts.
    """
    lines = read_text(file, "--prompts").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    first = lines[0].strip() if lines else ""
    if first.startswith("{"):
        rows = [_json_row(f"{file}:{number}", line) for number, line in enumerate(lines, 1)]
    elif "prompt" in (header := [name.strip().lower() for name in first.split("\t")]):
        rows = [_table_row(f"{file}:{number}", line, header) for number, line in enumerate(lines[1:], 2)]
    elif (
        "prompt" in (names := [name.strip().strip('"').lower() for name in re.split("[,;]", first)]) and len(names) > 1
    ):
        raise ConfigError(
            f"--prompts {file} has the header {first!r} of a table that is not separated by tabs; write the table with "
            "tabs, or JSON lines with prompt, or a prompt in each line"
        )
    else:
        rows = [(line, None, None) for line in lines if line.strip()]
    prompts, seen = [], set()
    for place, (text, category, challenge) in enumerate(rows):
        prompt = Prompt(place, plain(text), category or None, challenge or None)
        if prompt.prompt and prompt.prompt not in seen:
            seen.add(prompt.prompt)
            prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"--prompts {file} has no prompts; write one in each line, or give PartiPrompts.tsv")
    return prompts, len(rows) - len(prompts)


def _json_row(place, line):
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"{place} is no JSON ({problem}); write an object with a prompt in each line") from None
    values = [row.get(key) for key in ("prompt", "category", "challenge", "tag")] if isinstance(row, dict) else [None]
    if not isinstance(values[0], str) or not all(value is None or isinstance(value, str) for value in values):
        raise ConfigError(f'{place} has no prompt as text; write {{"prompt": "a red cube"}}')
    return values[0], values[1] or values[3], values[2]


def _table_row(place, line, header):
    cells = line.split("\t")
    if len(cells) > len(header) or len(cells) <= header.index("prompt"):
        raise ConfigError(
            f"{place} has {len(cells)} cells, and the header {len(header)}; separate cells by single tabs"
        )
    row = dict(zip(header, map(str.strip, cells), strict=False))
    return row["prompt"], row.get("category"), row.get("challenge")


def choose(prompts: Sequence[Prompt], count: int | None, draw) -> list[Prompt]:
    """Chooses `count` prompts so that each challenge and category keeps its share. Returns the chosen prompts in the
    order of the file; if `count` is None, returns all prompts.

    Prompts are sorted by challenge, category and the random number `draw(id)` in [0, 1); then prompts at even distances
    are taken. Raises `ConfigError` if `count` is below 1 or exceeds the number of prompts.
    """
    if count is None:
        return list(prompts)
    if not 1 <= count <= len(prompts):
        raise ConfigError(
            f"--choose is {count}; it must be at least 1 and at most {len(prompts)}, the prompts there are"
        )
    ordered = sorted(prompts, key=lambda one: (one.challenge or "", one.category or "", draw(one.id)))
    taken = [ordered[(2 * place + 1) * len(ordered) // (2 * count)] for place in range(count)]
    return sorted(taken, key=lambda one: one.id)
