"""Examples of several kinds, and a handler that fails or predicts according to the kinds in a batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runinference import ModelHandler, PredictionResult

#: The kinds of rows whose inference always fails, with the name of the error's type.
ERRORS = {
    "raise": "RowError",
    "lazy_raise": "LookupError",
    "too_few": "ResultMismatchError",
    "too_many": "ResultMismatchError",
    "no_results": "ResultMismatchError",
    "unavailable": "ConnectionError",
}
#: Values that are not rows.
INVALID_EXAMPLES = [
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
OUTPUT_FORMATS = ("list", "iterator", "dictionary", "tuple")
#: A number of rows that no batch exceeds.
UNLIMITED = 1_000


@dataclass(frozen=True)
class Row:
    """An example with a unique number."""

    n: int
    size: int = 1
    kind: str = "good"

    @property
    def nbytes(self) -> int:
        return self.size


class RowError(ValueError):
    """The error that the model raises for rows of the kind `raise`."""


def row_size(row: Row) -> int:
    return row.size


class SeenRows:
    """The numbers of the rows that already failed once, shared by all handlers in this process."""

    _numbers: set[int] = set()
    _lock = threading.Lock()

    @classmethod
    def add_transient(cls, batch: Any) -> bool:
        """Add the transient rows of a batch, and return whether any of them is new."""
        with cls._lock:
            numbers = {row.n for row in batch if row.kind == "transient"}
            any_new = not numbers <= cls._numbers
            cls._numbers |= numbers
            return any_new

    @classmethod
    def clear(cls) -> None:
        cls._numbers.clear()


class RowHandler(ModelHandler[Row, Any, str]):
    """Predict the model's name and the row's number for each row.

    Args:
        name: The name of the model.
        output_format: The structure of a batch's predictions, one of `OUTPUT_FORMATS`.
        max_rows: The size of the largest batch that doesn't raise `MemoryError`.
        **options: Options of `ModelHandler`.
    """

    def __init__(
        self,
        name: str = "m",
        output_format: str = "list",
        max_rows: int = UNLIMITED,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.name, self.output_format, self.max_rows = name, output_format, max_rows
        self.in_place = self.joins_threads = False

    def may_join_threads(self) -> bool:
        return self.joins_threads

    def load_model(self) -> str:
        if self.name == "missing":
            raise FileNotFoundError("no model here")
        return self.name

    def update_model_path(self, model_path: str | None = None) -> None:
        self.name = model_path or self.name

    def run_inference(self, batch: Any, model: str, inference_args: Any = None) -> Any:
        assert model == self.name, "the handler got the model of another handler"
        assert len(batch) > 0, "the batch is empty"
        try:
            return self._predict(batch, model + str((inference_args or {}).get("suffix", "")))
        except Exception:
            if self.in_place:
                _overwrite(batch)
            raise

    def _predict(self, batch: Any, name: str) -> Any:
        kinds = {row.kind for row in batch}
        if self.gives_whole_results():
            return self._predict_unsplit(batch, name, kinds)
        if len(batch) > self.max_rows:
            raise MemoryError
        if "raise" in kinds:
            raise RowError("a bad row")
        if "unavailable" in kinds or ("transient" in kinds and SeenRows.add_transient(batch)):
            raise ConnectionError("service unavailable")
        if "no_results" in kinds:
            return None
        numbers = [row.n for row in batch]
        if "too_few" in kinds:
            numbers.pop()
        if "too_many" in kinds:
            numbers += [-1, -1]  # two, so that the number is also wrong with a "too_few" row
        if "lazy_raise" in kinds:
            return self._generate(batch, name)
        return getattr(self, f"_as_{self.output_format}")(name, numbers)

    def _predict_unsplit(self, batch: Any, name: str, kinds: set[str]) -> PredictionResult:
        if len(batch) > self.max_rows:
            raise MemoryError
        if kinds & ERRORS.keys():
            raise RowError("a bad row")
        if "transient" in kinds and SeenRows.add_transient(batch):
            raise ConnectionError("service unavailable")
        return PredictionResult(batch, [row.n for row in batch], name)

    def _generate(self, batch: Any, name: str) -> Iterator[Any]:
        for row in batch:
            if row.kind == "lazy_raise":
                raise LookupError("raised while the results are read")
            yield name, row.n

    def _as_list(self, name: str, numbers: list[int]) -> Any:
        return [(name, n) for n in numbers]

    def _as_iterator(self, name: str, numbers: list[int]) -> Any:
        return ((name, n) for n in numbers)

    def _as_dictionary(self, name: str, numbers: list[int]) -> Any:
        return {"n": np.array(numbers), "name": name}

    def _as_tuple(self, name: str, numbers: list[int]) -> Any:
        return name, np.array(numbers)


def _overwrite(batch: Any) -> None:
    """Modify the rows of a batch, as a model that works in place does before it fails."""
    for row in batch:
        if isinstance(row, Row):
            object.__setattr__(row, "n", -row.n)
            object.__setattr__(row, "kind", "good")


def parse_result(result: Any) -> tuple[str, int]:
    """Return the model's name and the row's number from a result in any output format."""
    name, n = (result["name"], result["n"]) if isinstance(result, dict) else result
    return name, int(n)
