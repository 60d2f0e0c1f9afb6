"""Several models, and models that are replaced while the pipeline runs."""

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
from defects.tools import Doubling, Run, count, note, notes, said

_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


class Model:
    """Multiplies by what its file says; known while it is alive."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        _LIVE.add(self)

    def predict(self, number: float) -> float:
        return self.factor * number


class FromFile(Doubling):
    """Loads a model from a file with a number in it."""

    size = 100

    def __init__(self, path: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def load_model(self) -> Model:
        note("loads", self.path)
        return Model(float(Path(self.path).read_text()) if self.path else 2)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        note("batches", list(batch))
        return [model.predict(number) for number in batch]

    def update_model_path(self, model_path: str | None = None) -> None:
        self.path = model_path or self.path


class FromFileInOnes(FromFile):
    """The same, one at a time."""

    size = 1


def _live() -> int:
    gc.collect()
    return len(_LIVE)


def many_keys(package: Package) -> str:
    keys = [f"key{number}" for number in range(100)]
    mapping = package.base.KeyModelMapping(keys, package.handler(FromFile))
    elements = [(key, 1) for key in keys]
    # Beam gives a handler of several models no say in the batch size: one batch, made beforehand.
    other = package.base.KeyModelMapping(["other"], package.handler(FromFile))
    handler = package.base.KeyedModelHandler([mapping, other])
    handler.override_metrics("tests")  # as the transform does
    notes("batches"), notes("loads")
    list(handler.run_inference(elements, handler.load_model()))
    return count(len(notes("batches")), "call")


def hint(package: Package) -> str:
    """Four threads of a worker have a copy of the handler each, and one model together."""
    mappings = [package.base.KeyModelMapping([key], package.handler(FromFile)) for key in "abcd"]
    handler = package.base.KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    copies = [pickler.loads(pickler.dumps(handler)) for _ in range(4)]
    before = _live()
    shared = copies[0].load_model()
    for copy in copies:
        copy.override_metrics("tests")  # as the transform does
    for copy, key in zip(copies, "abcd", strict=True):
        list(copy.run_inference([(key, 1)], shared))
    return count(_live() - before, "model")


def failed_load(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_text("2")
        mappings = [
            package.base.KeyModelMapping([key], package.handler(FromFile, f"{folder}/{key}"))
            for key in ("missing", "a")
        ]
        handler = package.base.KeyedModelHandler(mappings, max_models_per_worker_hint=1)
        elements = [("missing", 1), ("a", 2), ("a", 3)]
        run = Run(package, elements, _ones(package, handler), aside={})
    return run.said(lambda run: f"{count(len(run.good), 'result')}, {len(run.bad)} set aside")


def _ones(package: Package, handler: Any) -> Any:
    """The handler, called with one element at a time."""
    handler.batch_elements_kwargs = _one_at_a_time
    return handler


def _one_at_a_time() -> dict[str, int]:
    return {"min_batch_size": 1, "max_batch_size": 1}


def unchanged(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_text("3")
        handler = package.base.KeyedModelHandler(
            [package.base.KeyModelMapping(["a"], package.handler(FromFileInOnes))]
        )
        update = [package.base.KeyModelPathMapping(["a"], str(path), "three")]
        elements = [("a", number) for number in range(10)]
        refreshed = Refreshed(package, handler, elements, [update])
        plain = Refreshed(package, handler, elements, [])
    extra = (refreshed.seconds - plain.seconds) / len(elements)
    return "over 100 ms" if extra > 0.1 else "under 100 ms"


class Refreshed:
    """A pipeline in which one model replaces another, and what came of it.

    Element number ``n`` falls into window ``n``, and there finds update ``n`` (the last ones come again and again,
    one after the other).
    """

    def __init__(
        self, package: Package, handler: Any, elements: list[Any], updates: list[Any]
    ) -> None:
        caught: list[Any] = []
        notes("loads"), notes("batches")
        self.error: BaseException | None = None
        start = time.perf_counter()
        try:
            with beam.Pipeline(runner=RUNNER) as pipeline:
                metadata = None
                if updates:
                    metadata = pipeline | "updates" >> _in_windows(
                        [updates[n % len(updates)] for n in range(len(elements))]
                    )
                step = package.base.RunInference(handler, model_metadata_pcoll=metadata)
                results = pipeline | "elements" >> _in_windows(elements) | step
                results | "catch" >> beam.ParDo(CollectElements(caught))
        except Exception as error:
            self.error = error
        self.seconds = time.perf_counter() - start
        self.results = CollectElements.take(caught)
        self.loads = notes("loads")


def _in_windows(values: list[Any]) -> beam.PTransform:
    """Value number ``n`` in a window of its own, from second ``n`` on."""
    return _InWindows(values)


class _InWindows(beam.PTransform):
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


def alternating(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        updates = []
        for name, factor in (("A", "3"), ("B", "5")):
            (Path(folder) / name).write_text(factor)
            updates.append(package.base.ModelMetadata(f"{folder}/{name}", name))
        run = Refreshed(package, package.handler(FromFileInOnes), list(range(10)), updates)
    return said(run.error) if run.error else count(len([p for p in run.loads if p]), "load")


def mutated(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        updates = []
        for name, factor in (("A", "3"), ("B", "5")):
            (Path(folder) / name).write_text(factor)
            updates.append(package.base.ModelMetadata(f"{folder}/{name}", name))
        notes("updated")
        run = Refreshed(package, package.handler(_NotingUpdates), [1, 2], updates)
    if run.error:
        return said(run.error)
    return count(len({id(handler) for handler in notes("updated")}), "handler")


class _NotingUpdates(FromFileInOnes):
    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path:
            note("updated", self)
        super().update_model_path(model_path)


def broken(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        good.write_text("3")
        updates = [
            package.base.ModelMetadata(str(good), "good"),
            package.base.ModelMetadata(f"{folder}/missing", "missing"),
        ]
        run = Refreshed(package, package.handler(FromFileInOnes), [1, 2], updates)
    return "the pipeline stops" if run.error else f"results {sorted(run.results)}"


class OnMachine(FromFileInOnes):
    """One model for all processes of the machine."""

    def share_model_across_processes(self) -> bool:
        return True


def leak(package: Package) -> str:
    with tempfile.TemporaryDirectory() as folder:
        updates = []
        for number in range(6):
            path = Path(folder) / f"model{number}"
            path.write_text(str(number))
            updates.append(package.base.ModelMetadata(str(path), path.name))
        before = _live()
        run = Refreshed(package, package.handler(OnMachine), list(range(6)), updates)
        files = len(list(Path(folder).iterdir())) - 6
    if run.error:
        return said(run.error)
    after = _live() - before
    return f"{count(after, 'model')} and {count(files, 'file')} left"


ROWS = (
    Row(
        "100 keys share one model: its calls for a batch with all of them.",
        many_keys,
        "100 calls",
        "1 call",
    ),
    Row(
        "`max_models_per_worker_hint=1`, in a process with 4 threads: what it holds.",
        hint,
        "4 models",
        "1 model",
    ),
    Row(
        "One key's model cannot be loaded; one element has that key, and two have another.",
        failed_load,
        "1 result, 2 set aside",
        "2 results, 1 set aside",
    ),
    Row(
        "What a refresh of models per key that changes nothing adds to a call.",
        unchanged,
        "over 100 ms",
        "under 100 ms",
    ),
    Row(
        "Ten updates name model A, model B, A, B and so on.",
        alternating,
        "10 loads",
        "2 loads",
    ),
    Row(
        "Two updates name two models: how many handlers hold their paths, while calls may still run.",
        mutated,
        "1 handler",
        "2 handlers",
    ),
    Row(
        "An update names a file that is missing; elements 1 and 2, and a model that triples.",
        broken,
        "the pipeline stops",
        "results [3.0, 6.0]",
    ),
    Row(
        "Six updates of a model that the processes of a machine share: what stays in memory, and "
        "on the disk beside the model.",
        leak,
        "6 models and 12 files left",
        "0 models and 0 files left",
    ),
)
