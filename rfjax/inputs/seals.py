"""A checksum inside a JSON object, by which a file that was edited or damaged tells so itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

SEAL = "seal"


def seal(facts: Mapping[str, object]) -> dict[str, object]:
    """The facts as JSON holds them, with the checksum of all of them under `SEAL`."""
    whole = json.loads(json.dumps({name: value for name, value in facts.items() if name != SEAL}))
    return whole | {SEAL: _checksum(whole)}


def is_broken(facts: Mapping[str, object]) -> bool:
    """Whether facts have a seal and are not those that were sealed. Earlier versions wrote none."""
    return SEAL in facts and _checksum({name: value for name, value in facts.items() if name != SEAL}) != facts[SEAL]


def _checksum(facts: Mapping) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
