"""Faults as users meet them: files cut short or replaced while a pipeline runs, models that hang, races."""

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

from common import linear_regression, run
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
    """A thread of a worker, with a copy of the DoFn of its own."""

    def __init__(self, step) -> None:
        self.do_fn = pickler.loads(pickler.dumps(InferDoFn(step)))
        self.do_fn.setup()

    def bundle(self, *elements, update=None):
        """The values that come out, and the elements set aside."""
        self.do_fn.start_bundle()
        outputs = []
        for element in elements:
            origin = WindowedValue(element, 0, (GlobalWindow(),))
            outputs += self.do_fn.process(element, origin, update) or ()
        outputs += self.do_fn.finish_bundle()
        bad = [out.value.value[0] for out in outputs if isinstance(out, TaggedOutput)]
        return [out.value for out in outputs if not isinstance(out, TaggedOutput)], bad


def model(path: Path, slope: float) -> str:
    """A model's file, put in place when it is complete."""
    linear_regression(path.with_suffix(".new"), slope)
    os.replace(path.with_suffix(".new"), path)
    return str(path)


def said(results) -> list[tuple[int, str]]:
    return [(round(float(r.inference)), Path(r.model_id).name) for r in results]


@pytest.mark.parametrize("share", [0, 0.5, 0.99], ids=["empty", "half", "nearly whole"])
def test_a_file_that_was_cut_short_is_an_error_that_names_it(tmp_path, share):
    path = Path(model(tmp_path / "model", 2))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelLoadError, match=str(path)):
        run([[1.0]], RunInference(SklearnModelHandlerNumpy(str(path))))


def test_a_refresh_that_names_a_file_cut_short_leaves_the_old_model_until_it_is_whole(tmp_path):
    old, new = model(tmp_path / "old", 2), model(tmp_path / "new", 5)
    whole = Path(new).read_bytes()
    Path(new).write_bytes(whole[:100])
    transform = RunInference(SklearnModelHandlerNumpy(old), model_metadata_pcoll=object())
    transform._clock = Clock()
    worker = Worker(transform.with_exception_handling()._config())
    update = ModelMetadata(new, "")
    assert said(worker.bundle([1.0])[0]) == [(2, "old")]
    assert said(worker.bundle([1.0], update=update)[0]) == [(2, "old")]
    Path(new).write_bytes(whole)
    assert said(worker.bundle([1.0], update=update)[0]) == [(2, "old")]  # not tried each time
    Clock.seconds += 60  # of the worker's copy too
    assert said(worker.bundle([1.0], update=update)[0]) == [(5, "new")]


class Clock:
    """Time that goes on when it is told to."""

    seconds = 1_000_000

    def time_ns(self) -> int:
        return self.seconds * 1_000_000_000


def test_a_file_that_is_replaced_or_deleted_after_it_was_loaded_changes_nothing(tmp_path):
    path = model(tmp_path / "model", 2)
    worker = Worker(RunInference(SklearnModelHandlerNumpy(path))._config())
    assert said(worker.bundle([1.0])[0]) == [(2, "model")]
    Path(path).write_bytes(b"no model at all")
    assert said(worker.bundle([1.0])[0]) == [(2, "model")]
    Path(path).unlink()
    assert said(worker.bundle([1.0])[0]) == [(2, "model")]


def test_one_key_whose_file_is_deleted_while_its_model_is_put_away_fails_alone(tmp_path):
    paths = {key: model(tmp_path / key, slope) for key, slope in (("a", 2), ("b", 3))}
    mappings = [KeyModelMapping([k], SklearnModelHandlerNumpy(paths[k])) for k in paths]
    keyed = KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    worker = Worker(RunInference(keyed).with_exception_handling()._config())
    good, bad = worker.bundle(("a", [1.0]), ("b", [1.0]))
    assert said(result for _, result in good) == [(2, "a"), (3, "b")]
    Path(paths["a"]).unlink()
    good, bad = worker.bundle(("a", [1.0]), ("b", [1.0]))
    assert (said(result for _, result in good), bad) == ([(3, "b")], [("a", [1.0])])
    model(tmp_path / "a", 4)
    good, bad = worker.bundle(("a", [1.0]), ("b", [1.0]))
    assert (said(result for _, result in good), bad) == ([(4, "a"), (3, "b")], [])


@pytest.mark.parametrize("seed", range(3))
def test_threads_race_through_loads_refreshes_and_evictions(tmp_path, seed):
    """Each result is that of a whole model that its key had, whatever others load and put away meanwhile."""
    slopes = {"a": 2, "b": 3, "c": 4, "second": 5, "third": 6}
    paths = {name: model(tmp_path / name, slope) for name, slope in slopes.items()}
    (tmp_path / "broken").write_bytes(b"no model")
    keyed = KeyedModelHandler(
        [KeyModelMapping([key], SklearnModelHandlerNumpy(paths[key])) for key in "abc"],
        max_models_per_worker_hint=2,
    )
    transform = RunInference(keyed, model_metadata_pcoll=object())
    step = transform.with_exception_handling()._config()
    updates = [
        [KeyModelPathMapping([key], str(tmp_path / name)) for key, name in zip("abc", names)]  # noqa: B905
        for names in (("a", "b", "c"), ("second", "b", "third"), ("a", "broken", "second"))
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(number: int) -> None:
        dice = random.Random(100 * seed + number)
        worker = Worker(step)
        for _ in range(15):
            update = dice.choice([None, *updates])
            keys = dice.choices("abc", k=4)
            good, bad = worker.bundle(*((key, [1.0]) for key in keys), update=update)
            assert sorted([key for key, _ in good] + [key for key, _ in bad]) == sorted(keys)
            for _key, result in good:
                [(answer, name)] = said([result])
                assert answer == slopes[name]
            assert {key for key, _ in bad} <= {
                "b"
            }  # whose first model may have been the broken one

    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(work, range(3)))
    finally:
        sys.setswitchinterval(interval)


def test_a_pickle_that_hangs_while_it_loads_does_not_hang_the_pipeline(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(pickle.dumps(_Sticky()))
    handler = SklearnModelHandlerNumpy(str(path))
    transform = RunInference(handler).with_exception_handling(timeout=2)
    worker = Worker(transform._config())
    assert worker.bundle([1.0]) == ([], [[1.0]])
    _GO_ON.set()
    model(path, 3)
    assert said(worker.bundle([1.0])[0]) == [(3, "model")]


_GO_ON = threading.Event()


class _Sticky:
    def __reduce__(self):
        return _wait, ()


def _wait():
    _GO_ON.wait(60)
    return len
