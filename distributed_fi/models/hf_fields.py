# SPDX-License-Identifier: Apache-2.0
"""Typed access to a config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_fi.errors import CorruptWeightsError

REQUIRED = object()
NUMBER = (int, float)


@dataclass(frozen=True)
class Fields:
    """A JSON object of a file; an error names the file and the field."""

    path: Path
    values: dict[str, Any]

    def number(self, name: str, default: Any = REQUIRED, *, kind: type | tuple[type, ...] = int) -> Any:
        """The number of a field; the default where it is missing or null."""
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                raise CorruptWeightsError(str(self.path), f"lacks the field {name}")
            return default
        if isinstance(value, bool) or not isinstance(value, kind):
            expected = "an integer" if kind is int else "a number"
            raise CorruptWeightsError(str(self.path), f"{name} must be {expected}, is {value!r}")
        return value

    def nested(self, name: str) -> Fields:
        """The object of a field; an empty one where it is missing or null."""
        value = self.values.get(name)
        if not isinstance(value, (dict, type(None))):
            raise CorruptWeightsError(str(self.path), f"{name} must be an object, is {value!r}")
        return Fields(self.path, value or {})

    def flag(self, name: str, default: bool = False) -> bool:
        """The truth value of a field; the default where it is missing or null."""
        value = self.values.get(name)
        return default if value is None else bool(value)


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds.

    Raises:
        CorruptWeightsError: not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptWeightsError(str(path), f"is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptWeightsError(str(path), "is not a JSON object")
    return values
