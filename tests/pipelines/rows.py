"""Examples of several kinds, and a model that behaves as its examples say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runinference import ModelHandler

#: What a model does with a batch that holds a row of a kind, as the type of the error that comes of it.
FAILING = {
    "raise": "RowError",
    "lazy": "LookupError",
    "few": "ResultMismatchError",
    "many": "ResultMismatchError",
    "nothing": "ResultMismatchError",
    "down": "ConnectionError",
}
JUNK = [
    None,
    ([1], 2),
    "junk",
    3.5,
    b"",
    {"a": 1},
    (1, 2, 3),
    (),
    frozenset(),
    np.zeros(3),
    [],
    object,
]


@dataclass(frozen=True)
class Row:
    """An example with a number of its own."""

    n: int
    size: int = 1
    kind: str = "good"

    @property
    def nbytes(self) -> int:
        return self.size


class RowError(ValueError):
    """What the model raises for a bad row."""


def size_of(row: Row) -> int:
    return row.size


class Rowwise(ModelHandler[Row, Any, str]):
    """Answers each row with its number and the model's name; a bad row spoils its batch in its own way."""

    def __init__(
        self, name: str = "m", style: str = "list", most: int = 1_000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.name, self.style, self.most = name, style, most
        self.met = _Met()

    def load_model(self) -> str:
        if self.name == "missing":
            raise FileNotFoundError("no model here")
        return self.name

    def update_model_path(self, model_path: str | None = None) -> None:
        self.name = model_path or self.name

    def run_inference(self, batch: Any, model: str, inference_args: Any = None) -> Any:
        assert model == self.name, "a handler called another model than its own"
        assert len(batch) > 0, "a batch is empty"
        kinds = {row.kind for row in batch}
        if len(batch) > self.most:
            raise MemoryError
        if "raise" in kinds:
            raise RowError("a bad row")
        if "down" in kinds or ("passing" in kinds and self.met.for_the_first_time(batch)):
            raise ConnectionError("nobody there")
        if "nothing" in kinds:
            return None
        numbers = [row.n for row in batch]
        if "few" in kinds:
            numbers.pop()
        if "many" in kinds:
            numbers += [-1, -1]  # "few" in the same batch does not make up for it
        if "lazy" in kinds:
            return self._one_by_one(batch)
        return getattr(self, f"_as_{self.style}")(numbers)

    def _one_by_one(self, batch: Any) -> Iterator[Any]:
        for row in batch:
            if row.kind == "lazy":
                raise LookupError("while it was read")
            yield self.name, row.n

    def _as_list(self, numbers: list[int]) -> Any:
        return [(self.name, n) for n in numbers]

    def _as_iterator(self, numbers: list[int]) -> Any:
        return ((self.name, n) for n in numbers)

    def _as_dictionary(self, numbers: list[int]) -> Any:
        return {"n": np.array(numbers), "name": self.name}

    def _as_tuple(self, numbers: list[int]) -> Any:
        return self.name, np.array(numbers)


STYLES = ("list", "iterator", "dictionary", "tuple")


def told(result: Any) -> tuple[str, int]:
    """The model's name and the row's number, whatever the style."""
    name, n = (result["name"], result["n"]) if isinstance(result, dict) else result
    return name, int(n)


class _Met:
    """The numbers of rows that were met before; copies of a handler in this process meet the same ones."""

    met: set[int] = set()
    lock = threading.Lock()

    def for_the_first_time(self, batch: Any) -> bool:
        """Whether a row that fails once is new; all of the batch are known from now on."""
        with self.lock:
            numbers = {row.n for row in batch if row.kind == "passing"}
            new = not numbers <= self.met
            self.met |= numbers
            return new

    @classmethod
    def forget(cls) -> None:
        cls.met.clear()
