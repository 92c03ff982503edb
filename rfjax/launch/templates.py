"""Fills the templates of scripts. A place to fill is written `@name@`, which no shell expands."""

from __future__ import annotations

import re

from rfjax.shipped import find_template


def fill(template: str, **values: str) -> str:
    """Returns the text of the shipped file launch/`template`, with each `@name@` replaced by its value."""
    text = find_template(template).read_text()
    places = set(re.findall(r"@(\w+)@", text))
    assert places == set(values), (template, places ^ set(values))
    return re.sub(r"@(\w+)@", lambda place: values[place[1]], text)
