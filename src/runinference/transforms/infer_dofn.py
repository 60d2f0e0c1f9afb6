"""The DoFns that run inference on the elements of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import WindowedValue

from runinference.handlers.call import may_modify_examples
from runinference.handlers.error_policy import Failure
from runinference.handlers.repeatable_batch import duplicate
from runinference.transforms.batch_sources import BatchSource, BundleBatches
from runinference.transforms.config import InferenceConfig
from runinference.transforms.engine import InferenceEngine
from runinference.transforms.side_inputs import are_same_arguments


class InferDoFn(beam.DoFn):  # type: ignore[misc]
    """Run the batches that a batch source forms from the elements of a bundle.

    Each element travels with its ``WindowedValue``, which holds its window and timestamp and costs half as much
    as asking Beam for both. It must have one window: see ``ExplodeWindows``.
    """

    def __init__(self, config: InferenceConfig, source: type[BatchSource] = BundleBatches) -> None:
        self._config = config
        self._source = source

    def setup(self) -> None:
        self._engine = InferenceEngine(self._config)

    def teardown(self) -> None:
        if engine := vars(self).get("_engine"):  # setup may have failed
            engine.close()

    def start_bundle(self) -> None:
        self._engine.start_bundle()
        self._batches = self._source(self._engine)

    def process(
        self,
        element: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        update: Any = None,
        arguments: Any = None,
    ) -> Iterable[Any] | None:
        engine = self._engine
        if arguments is not engine.arguments:
            return self._process_with_new_arguments(element, origin, update, arguments)
        try:
            if update is not engine.update or engine.watcher is not None:
                engine.refresh(update)
            return self._batches.add(element, origin)
        except self._config.errors.caught as error:
            return [engine.make_dead_letter(origin, Failure(error))]

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._batches.flush()
        self._engine.finish_bundle()

    def _process_with_new_arguments(
        self, element: Any, origin: WindowedValue, update: Any, arguments: Any
    ) -> Iterator[Any]:
        """Run the elements batched with the previous arguments first, unless the new ones are equal."""
        if not are_same_arguments(arguments, self._engine.arguments):
            yield from self._batches.flush()
        self._engine.arguments = arguments
        yield from self.process(element, origin, update, arguments) or ()


class ExplodeWindows(beam.DoFn):  # type: ignore[misc]
    """Emit an element once in each of its windows, as Beam does for a DoFn with a window parameter.

    If the handler may modify examples in place, each window gets a separate copy.
    """

    def __init__(self, handler: Any) -> None:
        self._copies = may_modify_examples(handler, [])

    def start_bundle(self) -> None:
        self._last: Any = None
        self._unmodified: Any = None

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Iterable[Any]:
        if not self._copies:
            return [element]
        # Beam passes the same object for one window after the other, and the model may run in between.
        if element is self._last:
            return [_copy(self._unmodified)]
        self._last, self._unmodified = element, _copy(element)
        return [element]

    def finish_bundle(self) -> None:
        self._last = self._unmodified = None


def _copy(element: Any) -> Any:
    try:
        return duplicate(element)
    except Exception:  # an object that cannot be copied
        return element
