"""Files of prompts in three forms; which prompts ask for text; a choice that keeps shares."""

from collections import Counter

import pytest

from rfjax.compare.design import draw
from rfjax.compare.prompts import asks_for_text, choose, questions_of, read_prompts
from rfjax.compare.study_files import Prompt
from rfjax.errors import ConfigError

# Rows as in PartiPrompts.tsv: cells are separated by tabs, and a quote is a quote.
PARTI = """Prompt\tCategory\tChallenge\tNote
bond\tAbstract\tBasic\tBiology-inspired concepts
"G I G G L E" painted in thick letters\tIllustrations\tWriting & Symbols\t
A sign that says Deep Learning\tIllustrations\tWriting & Symbols\t
a tiger with a yin-yang symbol on it\tAnimals\tWriting & Symbols\t
bond\tAbstract\tBasic\t
a frog reading a newspaper named "Toaday"\tAnimals\tPerspective\t
"""


def test_partiprompts_is_read(tmp_path):
    """Catches a reader of CSV, which would join the lines from a cell that begins with a quote."""
    (tmp_path / "p.tsv").write_text(PARTI)
    prompts, repeated = read_prompts(tmp_path / "p.tsv")
    assert [one.id for one in prompts] == [0, 1, 2, 3, 5] and repeated == 1
    assert prompts[1] == Prompt(1, '"G I G G L E" painted in thick letters', "Illustrations", "Writing & Symbols")
    assert [asks_for_text(one) for one in prompts] == [False, True, True, False, True]


def test_json_lines_and_plain_text_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a red  cube", "tag": "colors"}\n{"prompt": "x", "challenge": "y"}\n')
    assert read_prompts(tmp_path / "a.jsonl")[0] == [Prompt(0, "a red cube", "colors"), Prompt(1, "x", None, "y")]
    (tmp_path / "a.txt").write_text("a red cube\n\n  a star \n")
    assert read_prompts(tmp_path / "a.txt")[0] == [Prompt(0, "a red cube"), Prompt(1, "a star")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "has no prompts"),
        ('{"prompt": 3}\n', ":1 has no prompt as text"),
        ('{"prompt": "x"}\nnothing\n', ":2 is no JSON"),
        ("Prompt\tCategory\nx\ty\tz\n", ":2 has 3 cells, and the header 2"),
        ("Prompt,Category\na cat,Animals\n", "the header 'Prompt,Category' of a table that is not separated by tabs"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, content, message):
    (tmp_path / "p").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / "p")


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("a mug with 'HOT' on it", True),
        ("the dogs' bowl beside the cats' bowl", False),
        ("a wall with “PEACE” on it", True),
        ("a book called ‘Nets’", True),
        ("it's a dog's life", False),
        ("a man writing a letter", False),
    ],
)
def test_typography_is_asked_where_a_prompt_quotes_text(text, asks):
    assert ("typography" in questions_of(Prompt(0, text), ("aesthetics", "typography"))) == asks


def test_a_choice_keeps_the_shares_of_challenges():
    """Catches a choice of the first prompts: PartiPrompts is sorted by challenge."""
    prompts = [Prompt(n, f"p{n}", None, "Basic" if n < 60 else "Complex") for n in range(80)]
    chosen = choose(prompts, 20, lambda place: draw(0, place))
    assert Counter(one.challenge for one in chosen) == {"Basic": 15, "Complex": 5}
    assert chosen == sorted(set(chosen), key=lambda one: one.id) != choose(prompts, 20, lambda place: draw(1, place))
    assert choose(prompts, None, None) == prompts == choose(prompts, 80, lambda place: draw(0, place))
    with pytest.raises(ConfigError, match="--choose is 81; it must be at least 1 and at most 80"):
        choose(prompts, 81, None)
