"""Secrets that stay in the process in which the user gives them."""

from __future__ import annotations

import uuid
from typing import Any

_secrets: dict[str, Any] = {}


class ProcessSecret:
    """A secret that doesn't leave this process: a pickle of it contains only a reference."""

    def __init__(self, value: Any) -> None:
        known = (reference for reference, other in _secrets.items() if other == value)
        self._reference = next(known, None) or uuid.uuid4().hex
        _secrets[self._reference] = value

    @property
    def value(self) -> Any:
        """The secret, or None in another process."""
        return _secrets.get(self._reference)
