"""Scripts with places to fill: `@name@`, which no shell reads otherwise."""

from __future__ import annotations

import re

from rfjax.shipped import find_template


def fill(template: str, **values: str) -> str:
    """The shipped file `template` of launch/ with every `@name@` replaced; each value must have its place."""
    text = find_template(template).read_text()
    places = set(re.findall(r"@(\w+)@", text))
    assert places == set(values), (template, places ^ set(values))
    return re.sub(r"@(\w+)@", lambda place: values[place[1]], text)
