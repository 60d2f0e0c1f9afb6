"""Measure a handler on sample elements, and recommend options."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batcher
from runinference.batching.element_size import size_in_bytes
from runinference.batching.policy import (
    DEFAULT_BUCKET_BOUNDARIES,
    DEFAULT_MAX_BATCH_BYTES,
    DEFAULT_MAX_BATCH_SIZE,
    BatchPolicy,
    resolve_policy,
)
from runinference.caching.memory_budget import available_memory_bytes
from runinference.checks import check_callable, check_int, check_mapping, check_names, check_seconds
from runinference.errors import OptionError, TuningError, describe, suggest
from runinference.handlers.tunable import Tunable, TunableOption
from runinference.remote.handler import RemoteModelHandler
from runinference.tuning.candidate import BatchFailedError, Candidate, NumberedBatch
from runinference.tuning.result import TuningResult
from runinference.tuning.sample import element_error, prepare_sample
from runinference.tuning.search import Search

#: The number of requests in a batch of a remote handler, for each request in flight.
_REQUESTS_PER_SLOT = 4
#: The share of the time limit that a pass over the sample in batches of one element may take.
_PASS_SHARE = 0.01
_MIN_ELEMENTS = 8
#: A maximum padded size is measured on this many full batches, if the number of elements allows it.
_MIN_FULL_BATCHES = 4
#: After a batch of one element, batches that are divided into micro-batches are measured from this size on.
_MIN_DIVIDED_SIZE = 128
#: The data of a batch is at most this part of the memory, unless the handler has another limit.
_MEMORY_PER_BATCH = 16
_BATCH_DEFAULTS = {"min_batch_size": 1, "max_batch_size": DEFAULT_MAX_BATCH_SIZE}


def tune(
    handler: Any,
    elements: Iterable[Any],
    *,
    inference_args: dict[str, Any] | None = None,
    options: Sequence[str] | None = None,
    time_limit: float = 60,
    rounds: int = 5,
    progress: Callable[[str], None] | None = None,
) -> TuningResult:
    """Measure the calls of a handler with several options, without a pipeline, and recommend the fastest ones.

    For local models, this measures batch sizes of 1, 2, 4, and so on, and ``max_padded_size`` if the lengths of
    elements are known and differ. Hugging Face handlers for texts divide batches into micro-batches unless
    ``max_padded_size`` is set, so batches of 1, 128, 256, and so on texts are compared with it. For remote
    models, this measures ``max_request_size`` and ``max_concurrent_requests``. If the model of a PyTorch handler
    runs on a GPU, it also measures ``autocast`` and ``compile``. Values grow as long as larger ones are faster.
    They are compared in several rounds in alternating order, by their medians. The recommendation is the smallest
    value within 5% of the best throughput.

    The handler's own ``min_batch_size``, ``max_batch_size``, ``max_padded_size``, and ``max_request_size`` are
    ignored. Its other limits apply.

    >>> from runinference import ModelHandler
    >>> class Doubler(ModelHandler[int, int, object]):
    ...     def load_model(self):
    ...         return lambda numbers: [2 * n for n in numbers]
    ...     def run_inference(self, batch, model, inference_args=None):
    ...         return model(batch)
    >>> result = tune(Doubler(), range(100), rounds=1)
    >>> [row.value for row in result.measurements][:3]
    [1, 2, 4]

    Args:
        handler: A handler with one model. For a ``KeyedModelHandler``, the options are those of the handler that
            it wraps.
        elements: Elements that a pipeline would pass to ``RunInference``. The first 1,024 are used, or fewer if
            the model is slow. They are repeated for larger batches.
        inference_args: Keyword arguments for the model call.
        options: The names of the options to measure in addition to the size of batches or requests:
            ``"autocast"``, ``"compile"``, ``"max_concurrent_requests"``. By default, those that apply to the
            handler and its device.
        time_limit: Maximum seconds for the measurements. A call that is running isn't interrupted, and at least
            one value is measured. The time to load the model isn't included.
        rounds: Maximum number of rounds.
        progress: Called with a line of text after each step, for example ``print``.

    Returns:
        The measurements and the recommended options.

    Raises:
        TuningError: The model can't be loaded, or it fails on an element, which the message names.
        OptionError: ``handler`` is not a handler with one model, or its elements are batches; ``elements`` is
            empty or not a list; or another argument is invalid.
    """
    check_seconds("time_limit", time_limit)
    check_int("rounds", rounds)
    if inference_args is not None:
        check_mapping("inference_args", inference_args)
    if progress is not None:
        check_callable("progress", progress)
    handler, sample = prepare_sample(handler, elements)
    _check_inference_args(handler, inference_args)
    tunable = _select_options(handler, options)
    tuner = _Tuner(handler, sample, inference_args, progress or (lambda text: None))
    return tuner.run(tunable, time_limit, rounds)


def _check_inference_args(handler: Any, inference_args: dict[str, Any] | None) -> None:
    try:
        handler.validate_inference_args(inference_args)
    except Exception as error:
        raise OptionError(
            f"The handler doesn't accept these inference_args: {describe(error, 2_000)}"
        ) from error


def _select_options(handler: Any, names: Sequence[str] | None) -> list[TunableOption]:
    """Return the options to measure; raise `OptionError` for a name of another option."""
    known = {option.name: option for option in _get_options(handler)}
    if names is None:
        return [option for option in known.values() if option.applies]
    check_names("options", names)
    for name in names:
        if name not in known:
            found = ", ".join(known) or "none"
            raise OptionError(
                f"{type(handler).__name__} has no option {name!r} that can be measured.{suggest(name, known)} Its "
                f"options besides the batch size are: {found}."
            )
    return [known[name] for name in names]


def _get_options(handler: Any) -> Sequence[TunableOption]:
    return handler.tunable_options() if isinstance(handler, Tunable) else ()


class _Tuner:
    """Creates the candidates for a handler and a sample, and searches among them."""

    def __init__(
        self,
        handler: Any,
        sample: list[Any],
        inference_args: dict[str, Any] | None,
        progress: Callable[[str], None],
    ) -> None:
        self._handler = handler
        self._sample = sample
        self._inference_args = inference_args
        self._progress = progress
        self._policy = replace(resolve_policy(handler), max_padded_size=None)
        self._has_byte_limit = self._policy.max_batch_bytes != DEFAULT_MAX_BATCH_BYTES
        if not self._has_byte_limit:
            limit = max(DEFAULT_MAX_BATCH_BYTES, available_memory_bytes() // _MEMORY_PER_BATCH)
            self._policy = replace(self._policy, max_batch_bytes=limit)

    def run(self, options: Sequence[TunableOption], seconds: float, rounds: int) -> TuningResult:
        """Choose the batches first, and then the value of one option after the other."""
        notes: list[str] = []

        def start_search() -> Search:
            return Search(seconds / (1 + len(options)), rounds, self._progress, notes)

        self._progress("loading the model")
        base = self._load(self._handler)
        search = start_search()
        self._shorten_sample(base, search, seconds)
        if isinstance(self._handler, RemoteModelHandler):
            candidates = search.grow(self._request_sizes(base), until=0.5)
        else:
            candidates = search.grow(self._batch_sizes(base, notes), until=0.5)
            candidates += search.grow(self._padded_sizes(base), until=0.7)
        chosen = search.choose(candidates)
        chosen.options |= self._byte_limit(chosen)
        measured = [each.measurement(is_recommended=each is chosen) for each in candidates]
        for option in options:
            search = start_search()
            values = self._values(option, chosen, notes)
            candidates = search.measure_all(values) if option.is_choice else search.grow(values)
            if candidates:
                chosen = search.choose(candidates)
                measured += [each.measurement(is_recommended=each is chosen) for each in candidates]
        defaults = _BATCH_DEFAULTS | {option.name: option.default for option in options}
        recommended = {
            name: value
            for name, value in chosen.options.items()
            if name not in defaults or value != defaults[name]
        }
        return TuningResult(tuple(measured), recommended, tuple(notes))

    def _load(self, handler: Any) -> Candidate:
        """Load the model of a handler, and return a candidate that calls it on one element."""
        try:
            handler.set_environment_vars()
            model = handler.load_model()
        except Exception as error:
            raise TuningError(f"The model can't be loaded: {describe(error, 2_000)}") from error
        batches = [self._repeat(1)]
        return Candidate("max_batch_size", 1, {}, handler, model, self._inference_args, batches)

    def _shorten_sample(self, base: Candidate, search: Search, seconds: float) -> None:
        """Shorten the sample if passes over it would take too long."""
        try:
            base.call(base.batches[0])
            duration = min(base.call(base.batches[0]) for _ in range(2))
        except BatchFailedError as failed:
            search.handle_failure(base, failed, [])
            raise
        n = int(_PASS_SHARE * seconds / max(duration, 1e-6))
        self._sample = self._sample[: max(_MIN_ELEMENTS, n)]

    def _batch_sizes(self, base: Candidate, notes: list[str]) -> Iterator[Candidate]:
        """Yield batches of 1, 2, 4 and so on elements, as long as the other limits of the handler allow them."""
        policy = self._policy
        handler, start = base.handler, 2
        if isinstance(handler, Tunable):
            handler = handler.with_micro_batches(True)
            start = _MIN_DIVIDED_SIZE if handler.uses_micro_batches() else start
        _measure_lengths(policy, self._sample)
        n_buckets = len({policy.bucket(element) for element in self._sample})
        for size in (1, *_powers_of_two(DEFAULT_MAX_BATCH_SIZE, start)):
            fixed = replace(policy, min_batch_size=size, max_batch_size=size)
            n = size * n_buckets
            batches = _divide(fixed, self._repeat(n * math.ceil(len(self._sample) / n)))
            if max(map(len, batches)) < size:
                notes.append(
                    f"max_batch_size={size} wasn't measured. Batches stay smaller, because of another limit of "
                    f"the handler or because their data would exceed 1/{_MEMORY_PER_BATCH} of the memory."
                )
                return
            options = {"min_batch_size": size, "max_batch_size": size}
            changes = {"handler": handler, "batches": batches}
            yield base.with_value("max_batch_size", size, options, **changes)

    def _padded_sizes(self, base: Candidate) -> Iterator[Candidate]:
        """Yield batches of ascending maximum padded sizes, if elements have different lengths."""
        policy = self._policy
        handler, default = base.handler, None
        if isinstance(handler, Tunable):
            handler, default = handler.with_micro_batches(False), handler.default_length_fn()
        is_default = policy.bucket_boundaries == DEFAULT_BUCKET_BOUNDARIES
        policy = replace(
            policy,
            length_fn=policy.length_fn or default,
            bucket_boundaries=() if is_default else policy.bucket_boundaries,
            min_batch_size=1,
            max_batch_size=DEFAULT_MAX_BATCH_SIZE,
        )
        lengths = _measure_lengths(policy, self._sample)
        if min(lengths) == max(lengths):  # or there is no function for the lengths
            return
        for size in _powers_of_two(sys.maxsize, start=math.ceil(max(lengths))):
            n = math.ceil(_MIN_FULL_BATCHES * size * len(lengths) / sum(lengths))
            n = min(max(n, len(lengths)), DEFAULT_MAX_BATCH_SIZE)
            batches = _divide(replace(policy, max_padded_size=size), self._repeat(n))
            options, changes = {"max_padded_size": size}, {"handler": handler, "batches": batches}
            yield base.with_value("max_padded_size", size, options, **changes)
            if len(batches) == 1:
                return

    def _request_sizes(self, base: Candidate) -> Iterator[Candidate]:
        """Yield requests of 1, 2, 4 and so on elements, or of one if the handler doesn't support more."""
        if base.handler.max_request_size == 1:
            yield base.with_value("max_request_size", 1, {}, **self._requests(base.handler))
            return
        for size in _powers_of_two(DEFAULT_MAX_BATCH_SIZE):
            handler = base.handler.with_option("max_request_size", size)
            options = {"max_request_size": size}
            yield base.with_value("max_request_size", size, options, **self._requests(handler))

    def _values(
        self, option: TunableOption, base: Candidate, notes: list[str]
    ) -> Iterator[Candidate]:
        """Yield the candidates for the values of an option, with the options that were chosen before."""
        for value in option.values:
            handler = base.handler.with_option(option.name, value)
            try:
                model = self._load(handler).model
            except TuningError as error:
                notes.append(f"{option.name}={value!r} wasn't measured. {error}")
                continue
            changes: dict[str, Any] = {"handler": handler, "model": model}
            if isinstance(handler, RemoteModelHandler):
                changes |= self._requests(handler)
            yield base.with_value(option.name, value, {option.name: value}, **changes)

    def _requests(self, handler: Any) -> dict[str, Any]:
        """Return the attributes of a candidate that sends requests concurrently."""
        n_in_flight = handler.max_concurrent_requests
        n_requests = n_in_flight * _REQUESTS_PER_SLOT
        batches = [self._repeat(n_requests * (handler.max_request_size or 1))]
        return {
            "handler": handler,
            "batches": batches,
            "n_requests": n_requests,
            "n_in_flight": n_in_flight,
        }

    def _repeat(self, n: int) -> NumberedBatch:
        """Return ``n`` numbered elements of the sample, which is repeated if it has fewer."""
        return list(islice(cycle(enumerate(self._sample)), n))

    def _byte_limit(self, candidate: Candidate) -> dict[str, int]:
        """Return the option that allows the batches of a candidate if the default limit of bytes doesn't."""
        n_bytes = max(sum(size_in_bytes(each) for _, each in batch) for batch in candidate.batches)
        if self._has_byte_limit or n_bytes <= DEFAULT_MAX_BATCH_BYTES:
            return {}
        return {"max_batch_bytes": 1 << (n_bytes - 1).bit_length()}


def _divide(policy: BatchPolicy, elements: NumberedBatch) -> list[NumberedBatch]:
    """Divide numbered elements into batches, as ``RunInference`` would."""
    batcher: Batcher[tuple[int, Any]] = Batcher(policy, AdaptiveSize(policy))
    full = [batch for item in elements for batch in batcher.add(item[1], item)]
    return [*full, *batcher.flush()]


def _measure_lengths(policy: BatchPolicy, sample: Sequence[Any]) -> list[int]:
    """Return the lengths of elements; raise `TuningError` if one has no length or weight."""
    lengths = []
    for index, element in enumerate(sample):
        try:
            lengths.append(policy.length(element))
            policy.weight(element)
        except Exception as error:
            what = "batch_length_fn or element_size_fn fails on"
            raise element_error(index, element, error, what) from error
    return lengths


def _powers_of_two(maximum: int, start: int = 1) -> Iterator[int]:
    """Yield powers of two, from the first one that is at least ``start``.

    >>> list(_powers_of_two(40, start=5))
    [8, 16, 32]
    """
    power: int = 1 << (start - 1).bit_length()
    while power <= maximum:
        yield power
        power *= 2
