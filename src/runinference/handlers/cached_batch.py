"""The results of one batch: from a store, from the model, or from an equal element of the batch."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from runinference.caching.guarded_store import GuardedStore
from runinference.caching.result_entry import (
    EntryError,
    TrustedTypes,
    UncacheableResultError,
    decode_entry,
    encode_entry,
)
from runinference.caching.shared_calls import SharedCalls
from runinference.collate.rows import select_rows
from runinference.errors import PartialResult
from runinference.handlers.call import OnPart
from runinference.handlers.repeatable_batch import duplicate
from runinference.handlers.stable_bytes import get_class_name, to_stable_bytes
from runinference.results import PredictionResult

#: Maximum time by which the timestamp of a result may be in the future, because clocks differ.
_MAX_CLOCK_SKEW_SECS = 60

#: Calls the model on a batch of some elements, and reports each part that is complete.
CallModel = Callable[[Any, int, OnPart], "list[PartialResult]"]


class CacheForm(ABC):
    """How results are stored: which part of an element they depend on, and which part of a result is stored."""

    @abstractmethod
    def get_input(self, element: Any) -> Any:
        """Return the part of an element that its result depends on.

        Raises:
            Exception: The result of this element can't be stored.
        """

    @abstractmethod
    def get_output(self, element: Any, result: Any) -> Any:
        """Return what to store of a result, without its element."""

    @abstractmethod
    def make_result(self, element: Any, output: Any) -> Any:
        """Return the result of an element from what was stored of the result of an equal element."""


class PredictionForm(CacheForm):
    """Predictions, without their examples."""

    def get_input(self, element: Any) -> Any:
        return element

    def get_output(self, element: Any, result: Any) -> Any:
        if type(result) is PredictionResult and _is_same(result.example, element):
            return True, (result.inference, result.model_id)
        return False, result

    def make_result(self, element: Any, output: Any) -> Any:
        is_prediction, stored = output
        return PredictionResult(element, *stored) if is_prediction else stored


def _is_same(example: Any, element: Any) -> bool:
    """Return whether the example of a result is the element, or a copy, such as another view of an array's row."""
    return example is element or to_stable_bytes(example) == to_stable_bytes(element)


class CachedBatch:
    """A batch whose elements get their results from a store or from the model.

    Args:
        batch: The batch, as the model takes it.
        elements: Its elements.
        start_key: A hash of the cache key's parts except the element; None if no element can be cached.
        form: How results are stored.
        store: The store.
        trusted: The classes that results may contain.
        max_age_secs: Maximum age of results; None for no limit.
        warn: Logs a message once.
    """

    def __init__(
        self,
        batch: Any,
        elements: Sequence[Any],
        start_key: Any,
        form: CacheForm,
        store: GuardedStore,
        trusted: TrustedTypes,
        max_age_secs: float | None,
        warn: Callable[[str], None],
    ) -> None:
        self._batch, self._elements, self._form, self._store = batch, elements, form, store
        self._trusted, self._max_age_secs, self._warn = trusted, max_age_secs, warn
        self._lock = threading.Lock()
        self._indices: dict[str, list[int]] = {}  # of equal elements, by the name of their entry
        self._alone: list[int] = []  # elements for which the model is called without a store
        self._results: dict[int, Any] = {}
        self._errors: dict[int, Exception] = {}
        self._read_names: set[str] = set()
        self._n_misses = 0
        for index, element in enumerate(elements):
            name = self._get_name(element, start_key)
            if name is None:
                self._alone.append(index)
            else:
                self._indices.setdefault(name, []).append(index)
        self._n_skipped = len(self._alone)

    def run(
        self, calls: SharedCalls, call_model: CallModel, before_waiting: Callable[[], None]
    ) -> list[PartialResult]:
        """Return the outcomes of consecutive elements, in order.

        Args:
            calls: Calls the model once for each name.
            call_model: Calls the model on a batch of some of the elements.
            before_waiting: Called before this thread waits for other workers.
        """

        def call(names: list[str], finish: Callable[[Mapping[str, bytes | None]], None]) -> None:
            self._n_misses += len(names)
            named = {self._indices[name][0]: name for name in names}
            indices, self._alone = sorted([*named, *self._alone]), []

            def on_part(start: int, part: PartialResult) -> None:
                if part.results is not None:
                    done = indices[start : start + part.size]
                    finish(self._keep(done, part.results, named))

            is_whole = len(indices) == len(self._elements)
            batch = self._batch if is_whole else select_rows(self._batch, indices)
            start = 0
            for part in call_model(batch, len(indices), on_part):
                if part.error is not None:
                    self._fail(indices[start : start + part.size], part.error, named)
                start += part.size

        calls.resolve([*self._indices], self._read, call, before_waiting)
        while self._alone:  # elements, or copies of a result, that can't be pickled
            call([], lambda entries: None)
        return self._list_parts()

    def count(self) -> dict[str, int]:
        """Return the metrics of the batch."""
        n_hits = sum(len(self._indices[name]) for name in self._read_names)
        answered = [name for name, indices in self._indices.items() if indices[0] in self._results]
        n_saved = sum(len(self._indices[name]) - 1 for name in answered) + len(self._read_names)
        return {
            "cache_hits": n_hits,
            "cache_misses": self._n_misses,
            "cache_saved_calls": n_saved,
            "cache_skipped": self._n_skipped,
            "cache_errors": self._store.drain_errors(),
        }

    def _get_name(self, element: Any, start_key: Any) -> str | None:
        """Return the name of the entry of an element, or None if it can't be cached."""
        if start_key is None:
            self._warn(
                "The results of calls with inference_args that can't be pickled aren't cached."
            )
            return None
        try:
            data = to_stable_bytes(self._form.get_input(element))
        except Exception:
            name = get_class_name(type(element))
            self._warn(
                f"The results of elements of the type {name} aren't cached, because they are tables, invalid, or "
                "can't be pickled."
            )
            return None
        key = start_key.copy()
        key.update(data)
        return str(key.hexdigest())

    def _read(self, names: Sequence[str]) -> dict[str, Any]:
        """Read results from the store, keep them, and return their names."""
        found: dict[str, Any] = {}
        for name, entry in self._store.read(names).items():
            try:
                for index in self._indices[name]:  # each one gets its own copy
                    stored, output = decode_entry(entry, bytes.fromhex(name), self._trusted)
                    if not self._is_fresh(stored):
                        break
                    self._results[index] = self._form.make_result(self._elements[index], output)
                else:
                    found[name] = None
            except EntryError as error:
                self._store.report_damaged(error)
            except Exception:  # the element is invalid, for which the model call raises an error
                continue
        self._read_names |= found.keys()
        return found

    def _is_fresh(self, stored: float) -> bool:
        """Return whether a result isn't too old. A timestamp in the future means that a clock was wrong."""
        limit = self._max_age_secs
        return limit is None or -_MAX_CLOCK_SKEW_SECS <= time.time() - stored <= limit

    def _keep(
        self, indices: Sequence[int], results: Sequence[Any], named: Mapping[int, str]
    ) -> dict[str, bytes | None]:
        """Keep results for their elements and the equal ones. Return the entries to store."""
        entries: dict[str, bytes | None] = {}
        for index, result in zip(indices, results, strict=True):
            self._results[index] = result
            if (name := named.get(index)) is not None:
                entries[name] = self._encode(name, index, result)
        return entries

    def _encode(self, name: str, index: int, result: Any) -> bytes | None:
        """Return the entry of a result, or None if it can't be stored. Copy the result for equal elements."""
        _, *others = self._indices[name]
        key = bytes.fromhex(name)
        entry: bytes | None = None
        try:
            output = self._form.get_output(self._elements[index], result)
            entry = encode_entry(key, output, time.time(), self._trusted)
        except UncacheableResultError as error:
            self._warn(
                f"{error}. The model is called each time. To fix this, pass trusted_types to with_cache if you "
                "trust everyone who can write to the cache."
            )
        except Exception as error:
            self._warn(f"Results of {type(result).__qualname__} can't be cached: {error!r}")
        with self._lock:
            self._n_skipped += entry is None
        for other in others:
            try:
                if entry is None:
                    copied = duplicate(self._form.get_output(self._elements[index], result))
                else:
                    copied = decode_entry(entry, key, self._trusted)[1]
                self._results[other] = self._form.make_result(self._elements[other], copied)
            except Exception:  # no copy can be made, or the element is invalid
                with self._lock:
                    self._alone.append(other)
        return entry

    def _fail(self, indices: Sequence[int], error: Exception, named: Mapping[int, str]) -> None:
        for index in indices:
            equal = self._indices[named[index]] if index in named else [index]
            self._errors.update(dict.fromkeys(equal, error))

    def _list_parts(self) -> list[PartialResult]:
        def get_part(index: int) -> Any:
            return None if index in self._results else id(self._errors.get(index))

        parts = []
        for key, group in groupby(range(len(self._elements)), get_part):
            indices = [*group]
            results = [self._results[index] for index in indices] if key is None else None
            error = None if key is None else self._errors.get(indices[0])
            parts.append(PartialResult(len(indices), results, error))
        return parts
