"""``predict`` loads, reloads and frees models as a pipeline does."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest

from runinference import KeyedModelHandler, KeyModelMapping, KeyModelPathMapping, ModelHandler
from runinference.handlers.keyed import MaybeKeyedModelHandler


class Path(ModelHandler):
    """Its model is its path."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def load_model(self):
        return [self.path]

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def run_inference(self, batch, model, inference_args=None):
        return [model[0]] * len(batch)


@pytest.mark.parametrize(
    ("wrap", "example"),
    [
        (lambda handler: handler, 1),
        (lambda handler: handler.with_preprocess_fn(str), 1),
        (KeyedModelHandler, ("k", 1)),
        (MaybeKeyedModelHandler, 1),
    ],
    ids=["plain", "copy", "keyed", "maybe keyed"],
)
def test_the_model_is_loaded_again_after_its_path_was_updated(wrap, example):
    handler = wrap(Path("old"))
    before = handler.predict([example])
    assert "old" in str(before)
    handler.update_model_path("new")
    assert str(handler.predict([example])) == str(before).replace("old", "new")


class SetsPath:
    def update_model_path(self, model_path=None):
        self.path = model_path


class Mixed(SetsPath, Path):
    pass


class MixedAgain(Mixed):
    pass


class BehindTheBase(Path, SetsPath):
    pass


@pytest.mark.parametrize("kind", [Mixed, MixedAgain, BehindTheBase])
def test_a_mixin_may_define_how_the_path_is_updated(kind):
    handler = kind("old")
    assert handler.predict([1]) == ["old"]
    handler.update_model_path("new")
    assert handler.predict([1]) == ["new"]


class TakesArguments(Path):
    """Takes its arguments out of the dictionary."""

    def run_inference(self, batch, model, inference_args=None):
        return [inference_args.pop("word") + inference_args["words"].pop()] * len(batch)


WRAPPERS = {
    "plain": (lambda h: h, [1, 1]),
    "pre-batched": (lambda h: h.with_no_batching(), [[1], [1]]),
    "unsplit": (lambda h: h.with_no_batching(whole_results=True), [[1], [1]]),
    "keyed": (KeyedModelHandler, [("a", 1), ("b", 1)]),
    "keyed, unsplit": (
        lambda h: KeyedModelHandler(h).with_no_batching(whole_results=True),
        [("a", [1]), ("b", [1])],
    ),
    "per key": (lambda h: _per_key(h), [("a", 1), ("b", 1)]),
    "per key, pre-batched": (
        lambda h: _per_key(h).with_no_batching(),
        [[("a", 1), ("b", 1)], [("b", 1), ("a", 1)]],
    ),
    "per key, unsplit": (
        lambda h: _per_key(h).with_no_batching(whole_results=True),
        [("a", [1]), ("b", [1])],
    ),
}


def _per_key(handler):
    return KeyedModelHandler([KeyModelMapping([key], copy.copy(handler)) for key in "ab"])


@pytest.mark.parametrize(("wrap", "examples"), WRAPPERS.values(), ids=WRAPPERS)
def test_each_call_gets_its_own_copy_of_the_arguments(wrap, examples):
    arguments = {"word": "x", "words": ["y"]}
    results = wrap(TakesArguments("")).predict(examples, arguments)
    n_examples = sum(len(x) if isinstance(x, list) and x[0] != 1 else 1 for x in examples)
    assert len(results) == n_examples
    assert all("xy" in str(result) for result in results)
    assert arguments == {"word": "x", "words": ["y"]}


@pytest.mark.parametrize("rows_per_batch", [1, 3, 6])
def test_models_of_pre_batched_elements_are_loaded_once_each(rows_per_batch):
    loads = []

    class Counted(Path):
        def load_model(self):
            loads.append(self.path)
            return super().load_model()

    mappings = [KeyModelMapping([key], Counted(key)) for key in "abcdef"]
    handler = KeyedModelHandler(mappings, max_models_per_worker_hint=2).with_no_batching()
    rows = [("abcdef"[n % 6], n) for n in range(24)]
    batches = [rows[n : n + rows_per_batch] for n in range(0, 24, rows_per_batch)]
    assert handler.predict([*batches, []]) == [(key, key) for key, _ in rows]
    assert sorted(loads) == list("abcdef")


@pytest.mark.parametrize("through", ["wrapper", "inner"])
def test_per_key_models_are_loaded_again_after_an_update(through):
    inner = Path("old")
    handler = KeyedModelHandler([KeyModelMapping(["a"], inner), KeyModelMapping(["b"], Path("b"))])
    assert handler.predict([("a", 1), ("b", 1)]) == [("a", "old"), ("b", "b")]
    if through == "wrapper":
        paths = [KeyModelPathMapping(["a"], "new"), KeyModelPathMapping(["b"], "c")]
        handler.update_model_paths(None, paths)
        assert handler.predict([("a", 1), ("b", 1)]) == [("a", "new"), ("b", "c")]
    else:
        inner.update_model_path("new")
        assert handler.predict([("a", 1), ("b", 1)]) == [("a", "new"), ("b", "b")]


def test_copies_load_their_own_model_and_pickles_contain_none():
    handler = Path("old")
    handler.predict([1])
    copied, pickled = copy.copy(handler), pickle.loads(pickle.dumps(handler))
    for other in (copied, pickled):
        other.path = "new"
        assert other.predict([1]) == ["new"]
    assert handler.predict([1]) == ["old"]


class Weights:
    def __init__(self, owner) -> None:
        self.owner = owner


class Cyclic(ModelHandler):
    def load_model(self):
        return Weights(self)

    def run_inference(self, batch, model, inference_args=None):
        self.model = weakref.ref(model)
        return list(batch)


@pytest.mark.parametrize("wrap", [lambda handler: handler, KeyedModelHandler])
def test_a_model_that_refers_to_its_handler_is_freed_with_it(wrap):
    inner = Cyclic()
    handler = wrap(inner)
    handler.predict([("k", 1)])
    model = inner.model
    assert model() is not None
    del handler, inner
    gc.collect()
    assert model() is None


def test_loading_may_predict_with_another_handler():
    class Outer(Path):
        def load_model(self):
            return Path("inner").predict([1])

    assert Outer("x").predict([1]) == ["inner"]


def _find_positive(numbers):
    return next(n for n in numbers if n > 0)  # StopIteration if there is none


@pytest.mark.parametrize("wrap", [lambda handler: handler, MaybeKeyedModelHandler])
@pytest.mark.parametrize("name", ["with_preprocess_fn", "with_postprocess_fn"])
def test_a_function_that_raises_stop_iteration_loses_no_example(wrap, name):
    function = _find_positive if name == "with_preprocess_fn" else lambda result: next(iter([]))
    handler = getattr(wrap(Path("m")), name)(function)
    with pytest.raises((RuntimeError, StopIteration)):
        handler.predict([[1], [0], [2]])
