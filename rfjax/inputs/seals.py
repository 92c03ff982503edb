"""Puts a checksum into a JSON object. The checksum shows whether the object's file was edited or damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

SEAL = "seal"


def seal(facts: Mapping[str, object]) -> dict[str, object]:
    """Returns the facts, after a round trip through JSON, with their checksum under the key `SEAL`."""
    whole = json.loads(json.dumps({name: value for name, value in facts.items() if name != SEAL}))
    return whole | {SEAL: _checksum(whole)}


def is_broken(facts: Mapping[str, object]) -> bool:
    """Whether facts have a seal that does not match them. Facts without a seal, as earlier versions wrote, pass."""
    return SEAL in facts and _checksum({name: value for name, value in facts.items() if name != SEAL}) != facts[SEAL]


def _checksum(facts: Mapping) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
