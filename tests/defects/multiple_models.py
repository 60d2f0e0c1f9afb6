"""Cases about pipelines with several models and about model updates."""

from __future__ import annotations

import gc
import pickle
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.transforms import window

from common import RUNNER, CollectElements
from defects.packages import Package
from defects.row import Row
from defects.tools import Doubling, Run, count, describe_error, record_event, take_events

_LIVE_MODELS: weakref.WeakSet[Any] = weakref.WeakSet()


class Model:
    """Multiply by a factor. Live instances are counted."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        _LIVE_MODELS.add(self)

    def predict(self, number: float) -> float:
        return self.factor * number


class FromFile(Doubling):
    """Load a model from a file that contains its factor."""

    size = 100

    def __init__(self, path: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def load_model(self) -> Model:
        record_event("loads", self.path)
        return Model(float(Path(self.path).read_text()) if self.path else 2)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        record_event("batches", list(batch))
        return [model.predict(number) for number in batch]

    def update_model_path(self, model_path: str | None = None) -> None:
        self.path = model_path or self.path


class FromFileOneByOne(FromFile):
    """Load a model from a file and call it with one element at a time."""

    size = 1


def _count_live_models() -> int:
    gc.collect()
    return len(_LIVE_MODELS)


def many_keys(package: Package) -> str:
    keys = [f"key{number}" for number in range(100)]
    mapping = package.base.KeyModelMapping(keys, package.handler(FromFile))
    elements = [(key, 1) for key in keys]
    # Beam ignores the batch size of handlers with several models, so pass one batch directly.
    other = package.base.KeyModelMapping(["other"], package.handler(FromFile))
    handler = package.base.KeyedModelHandler([mapping, other])
    handler.override_metrics("tests")  # the transform does this, too
    take_events("batches"), take_events("loads")
    list(handler.run_inference(elements, handler.load_model()))
    return count(len(take_events("batches")), "call")


def max_models_hint(package: Package) -> str:
    """Count the models of four threads, which each have a copy of the handler."""
    mappings = [package.base.KeyModelMapping([key], package.handler(FromFile)) for key in "abcd"]
    handler = package.base.KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    copies = [pickler.loads(pickler.dumps(handler)) for _ in range(4)]
    before = _count_live_models()
    shared = copies[0].load_model()
    for copy in copies:
        copy.override_metrics("tests")  # the transform does this, too
    for copy, key in zip(copies, "abcd", strict=True):
        list(copy.run_inference([(key, 1)], shared))
    return count(_count_live_models() - before, "model")


def failed_load(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_text("2")
        mappings = [
            package.base.KeyModelMapping([key], package.handler(FromFile, f"{folder}/{key}"))
            for key in ("missing", "a")
        ]
        handler = package.base.KeyedModelHandler(mappings, max_models_per_worker_hint=1)
        elements = [("missing", 1), ("a", 2), ("a", 3)]
        run = Run(
            package, elements, _with_single_element_batches(package, handler), exception_handling={}
        )
    return run.describe(
        lambda run: f"{count(len(run.good), 'result')}, {count(len(run.bad), 'failed element')}"
    )


def _with_single_element_batches(package: Package, handler: Any) -> Any:
    """Set the handler's batch size to 1."""
    handler.batch_elements_kwargs = _single_element_batches
    return handler


def _single_element_batches() -> dict[str, int]:
    return {"min_batch_size": 1, "max_batch_size": 1}


def unchanged_update(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_text("3")
        handler = package.base.KeyedModelHandler(
            [package.base.KeyModelMapping(["a"], package.handler(FromFileOneByOne))]
        )
        update = [package.base.KeyModelPathMapping(["a"], str(path), "three")]
        elements = [("a", number) for number in range(10)]
        updated = RunWithUpdates(package, handler, elements, [update])
        plain = RunWithUpdates(package, handler, elements, [])
    extra = (updated.seconds - plain.seconds) / len(elements)
    return "over 100 ms" if extra > 0.1 else "under 100 ms"


class RunWithUpdates:
    """The outcome of a pipeline that updates its model.

    Element `n` is in window `n`, together with update `n % len(updates)`.
    """

    def __init__(
        self, package: Package, handler: Any, elements: list[Any], updates: list[Any]
    ) -> None:
        collected: list[Any] = []
        take_events("loads"), take_events("batches")
        self.error: BaseException | None = None
        start = time.perf_counter()
        try:
            with beam.Pipeline(runner=RUNNER) as pipeline:
                metadata = None
                if updates:
                    metadata = pipeline | "updates" >> _create_in_windows(
                        [updates[n % len(updates)] for n in range(len(elements))]
                    )
                transform = package.base.RunInference(handler, model_metadata_pcoll=metadata)
                results = pipeline | "elements" >> _create_in_windows(elements) | transform
                results | "collect" >> beam.ParDo(CollectElements(collected))
        except Exception as error:
            self.error = error
        self.seconds = time.perf_counter() - start
        self.results = CollectElements.take(collected)
        self.loads = take_events("loads")


def _create_in_windows(values: list[Any]) -> beam.PTransform:
    """Create a PCollection with value `n` in the one-second window that starts at second `n`."""
    return _CreateInWindows(values)


class _CreateInWindows(beam.PTransform):
    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self._values = values

    def expand(self, begin: Any) -> Any:
        timed = [window.TimestampedValue(value, n) for n, value in enumerate(self._values)]
        return (
            begin
            | beam.Create([pickle.dumps(list(timed))], reshuffle=False)
            | beam.FlatMap(pickle.loads)
            | beam.WindowInto(window.FixedWindows(1))
        )


def alternating_updates(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        updates = []
        for name, factor in (("A", "3"), ("B", "5")):
            (Path(folder) / name).write_text(factor)
            updates.append(package.base.ModelMetadata(f"{folder}/{name}", name))
        run = RunWithUpdates(package, package.handler(FromFileOneByOne), list(range(10)), updates)
    return (
        describe_error(run.error) if run.error else count(len([p for p in run.loads if p]), "load")
    )


def update_mutates_handler(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        updates = []
        for name, factor in (("A", "3"), ("B", "5")):
            (Path(folder) / name).write_text(factor)
            updates.append(package.base.ModelMetadata(f"{folder}/{name}", name))
        take_events("updated")
        run = RunWithUpdates(package, package.handler(_RecordsUpdates), [1, 2], updates)
    if run.error:
        return describe_error(run.error)
    return count(len({id(handler) for handler in take_events("updated")}), "handler")


class _RecordsUpdates(FromFileOneByOne):
    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path:
            record_event("updated", self)
        super().update_model_path(model_path)


def failed_update(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        good.write_text("3")
        updates = [
            package.base.ModelMetadata(str(good), "good"),
            package.base.ModelMetadata(f"{folder}/missing", "missing"),
        ]
        run = RunWithUpdates(package, package.handler(FromFileOneByOne), [1, 2], updates)
    return "the pipeline stops" if run.error else f"results {sorted(run.results)}"


class SharedAcrossProcesses(FromFileOneByOne):
    """Share one model between all processes of a machine."""

    def share_model_across_processes(self) -> bool:
        return True


def memory_after_updates(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        updates = []
        for number in range(6):
            path = Path(folder) / f"model{number}"
            path.write_text(str(number))
            updates.append(package.base.ModelMetadata(str(path), path.name))
        _drop_models_of_the_last_pipeline(package)
        before = _count_live_models()
        run = RunWithUpdates(
            package, package.handler(SharedAcrossProcesses), list(range(6)), updates
        )
        files = len(list(Path(folder).iterdir())) - 6
    if run.error:
        return describe_error(run.error)
    _drop_models_of_the_last_pipeline(package)
    after = _count_live_models() - before
    return f"{count(after, 'model')} and {count(files, 'file')} left"


def _drop_models_of_the_last_pipeline(package: Package) -> None:
    """Run another pipeline, because Beam keeps the models of the last one until then."""
    Run(package, [1], package.handler(Doubling))


ROWS = (
    Row(
        "Model calls for a batch with 100 keys that share one model.",
        many_keys,
        "100 calls",
        "1 call",
    ),
    Row(
        "Models in memory with `max_models_per_worker_hint=1` and 4 threads.",
        max_models_hint,
        "4 models",
        "1 model",
    ),
    Row(
        "The model of one key cannot be loaded. One element has this key, two have another.",
        failed_load,
        "1 result, 2 failed elements",
        "2 results, 1 failed element",
    ),
    Row(
        "Overhead per call of an update of per-key models that changes nothing.",
        unchanged_update,
        "over 100 ms",
        "under 100 ms",
    ),
    Row(
        "Model loads for ten updates that alternate between model A and model B.",
        alternating_updates,
        "10 loads",
        "2 loads",
    ),
    Row(
        "Handler objects for two model updates. With 1, an update modifies a handler in use.",
        update_mutates_handler,
        "1 handler",
        "2 handlers",
    ),
    Row(
        "An update names a missing file. The elements are 1 and 2, and the model multiplies by 3.",
        failed_update,
        "the pipeline stops",
        "results [3.0, 6.0]",
    ),
    Row(
        "What remains in memory and on disk after six updates of a model that is shared across "
        "processes.",
        memory_after_updates,
        "6 models and 12 files left",
        "0 models and 0 files left",
    ),
)
