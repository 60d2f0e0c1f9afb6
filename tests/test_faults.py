"""Faults in production: truncated or replaced model files, models that hang, and race conditions."""

from __future__ import annotations

import os
import pickle
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apache_beam.internal import pickler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from common import linear_regression, no_updates, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    ModelMetadata,
    RunInference,
)
from runinference.errors import ModelLoadError
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.transforms.infer_dofn import InferDoFn


class Worker:
    """A worker thread with its own copy of the DoFn."""

    def __init__(self, config) -> None:
        self.do_fn = pickler.loads(pickler.dumps(InferDoFn(config)))
        self.do_fn.setup()

    def bundle(self, *elements, update=None):
        """Process a bundle and return the results and the failed elements."""
        self.do_fn.start_bundle()
        outputs = []
        for element in elements:
            origin = WindowedValue(element, 0, (GlobalWindow(),))
            outputs += self.do_fn.process(element, origin, update) or ()
        outputs += self.do_fn.finish_bundle()
        bad = [out.value.value[0] for out in outputs if isinstance(out, TaggedOutput)]
        return [out.value for out in outputs if not isinstance(out, TaggedOutput)], bad


def save_model(path: Path, slope: float) -> str:
    """Write a model file atomically and return its path."""
    linear_regression(path.with_suffix(".new"), slope)
    os.replace(path.with_suffix(".new"), path)
    return str(path)


def summarize(results) -> list[tuple[int, str]]:
    return [(round(float(r.inference)), Path(r.model_id).name) for r in results]


@pytest.mark.parametrize("share", [0, 0.5, 0.99], ids=["empty", "half", "nearly complete"])
def test_truncated_model_file_raises_an_error_that_names_the_file(tmp_path, share):
    path = Path(save_model(tmp_path / "model", 2))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelLoadError, match=str(path)):
        run([[1.0]], RunInference(SklearnModelHandlerNumpy(str(path))))


def test_update_with_a_truncated_file_keeps_the_old_model_until_the_file_is_complete(tmp_path):
    old, new = save_model(tmp_path / "old", 2), save_model(tmp_path / "new", 5)
    content = Path(new).read_bytes()
    Path(new).write_bytes(content[:100])
    transform = RunInference(SklearnModelHandlerNumpy(old), model_metadata_pcoll=no_updates())
    transform._clock = Clock()
    worker = Worker(transform.with_exception_handling()._config())
    update = ModelMetadata(new, "")
    assert summarize(worker.bundle([1.0])[0]) == [(2, "old")]
    assert summarize(worker.bundle([1.0], update=update)[0]) == [(2, "old")]
    Path(new).write_bytes(content)
    assert summarize(worker.bundle([1.0], update=update)[0]) == [
        (2, "old")
    ]  # retried only after a while
    Clock.seconds += 60  # a class attribute, so that the worker's copy changes, too
    assert summarize(worker.bundle([1.0], update=update)[0]) == [(5, "new")]


class Clock:
    """A clock that advances only when the test sets it."""

    seconds = 1_000_000

    def time_ns(self) -> int:
        return self.seconds * 1_000_000_000


def test_replacing_or_deleting_a_loaded_file_has_no_effect(tmp_path):
    path = save_model(tmp_path / "model", 2)
    worker = Worker(RunInference(SklearnModelHandlerNumpy(path))._config())
    assert summarize(worker.bundle([1.0])[0]) == [(2, "model")]
    Path(path).write_bytes(b"not a model")
    assert summarize(worker.bundle([1.0])[0]) == [(2, "model")]
    Path(path).unlink()
    assert summarize(worker.bundle([1.0])[0]) == [(2, "model")]


def test_key_whose_file_is_deleted_after_eviction_fails_alone(tmp_path):
    paths = {key: save_model(tmp_path / key, slope) for key, slope in (("a", 2), ("b", 3))}
    mappings = [KeyModelMapping([k], SklearnModelHandlerNumpy(paths[k])) for k in paths]
    keyed = KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    worker = Worker(RunInference(keyed).with_exception_handling()._config())
    good, bad = worker.bundle(("a", [1.0]), ("b", [1.0]))
    assert summarize(result for _, result in good) == [(2, "a"), (3, "b")]
    Path(paths["a"]).unlink()
    good, bad = worker.bundle(("a", [1.0]), ("b", [1.0]))
    assert (summarize(result for _, result in good), bad) == ([(3, "b")], [("a", [1.0])])
    save_model(tmp_path / "a", 4)
    good, bad = worker.bundle(("a", [1.0]), ("b", [1.0]))
    assert (summarize(result for _, result in good), bad) == ([(4, "a"), (3, "b")], [])


@pytest.mark.parametrize("seed", range(3))
def test_concurrent_loads_updates_and_evictions(tmp_path, seed):
    """Every result comes from a model that its key had, while other threads load and evict models."""
    slopes = {"a": 2, "b": 3, "c": 4, "second": 5, "third": 6}
    paths = {name: save_model(tmp_path / name, slope) for name, slope in slopes.items()}
    (tmp_path / "broken").write_bytes(b"not a model")
    keyed = KeyedModelHandler(
        [KeyModelMapping([key], SklearnModelHandlerNumpy(paths[key])) for key in "abc"],
        max_models_per_worker_hint=2,
    )
    transform = RunInference(keyed, model_metadata_pcoll=no_updates())
    config = transform.with_exception_handling()._config()
    updates = [
        [KeyModelPathMapping([key], str(tmp_path / name)) for key, name in zip("abc", names)]  # noqa: B905
        for names in (("a", "b", "c"), ("second", "b", "third"), ("a", "broken", "second"))
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(number: int) -> None:
        rng = random.Random(100 * seed + number)
        worker = Worker(config)
        for _ in range(15):
            update = rng.choice([None, *updates])
            keys = rng.choices("abc", k=4)
            good, bad = worker.bundle(*((key, [1.0]) for key in keys), update=update)
            assert sorted([key for key, _ in good] + [key for key, _ in bad]) == sorted(keys)
            for _key, result in good:
                [(prediction, name)] = summarize([result])
                assert prediction == slopes[name]
            # Only key "b" can be updated to the broken file.
            assert {key for key, _ in bad} <= {"b"}

    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(work, range(3)))
    finally:
        sys.setswitchinterval(interval)


def test_model_that_hangs_while_loading_does_not_block_the_pipeline(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(pickle.dumps(_HangsOnLoad()))
    handler = SklearnModelHandlerNumpy(str(path))
    transform = RunInference(handler).with_exception_handling(timeout=2)
    worker = Worker(transform._config())
    assert worker.bundle([1.0]) == ([], [[1.0]])
    _CONTINUE.set()
    save_model(path, 3)
    assert summarize(worker.bundle([1.0])[0]) == [(3, "model")]


_CONTINUE = threading.Event()


class _HangsOnLoad:
    def __reduce__(self):
        return _wait, ()


def _wait():
    _CONTINUE.wait(60)
    return len
