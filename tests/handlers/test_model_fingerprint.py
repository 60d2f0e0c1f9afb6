"""Handlers have the same fingerprint if they load the same model."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from apache_beam.internal import pickler

from runinference import KeyedModelHandler, KeyModelMapping, MaybeKeyedModelHandler, ModelHandler
from runinference.handlers.model_fingerprint import fingerprint
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy


class Custom(ModelHandler):
    def __init__(self, *values, **options) -> None:
        super().__init__(**options)
        self.values = values

    def load_model(self):
        return self.values


class Other(Custom):
    pass


def sklearn(path="a.pkl", **options):
    return SklearnModelHandlerNumpy(path, **options)


class Equal:
    """A value whose repr says nothing."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "equal"


class First:
    class Net:
        layers = 1


class Second:
    class Net:
        layers = 2


def local_class(n, base=object):
    class Local(base):
        size = n

        def load_model(self):
            return n

        @property
        def doubled(self):
            return 2 * n

        @staticmethod
        def describe():
            return super(Local, Local)

    return Local


DIFFERENT = {
    "set of objects with one repr": (Custom({Equal(1)}), Custom({Equal(2)})),
    "nested classes of one name": (Custom(First.Net), Custom(Second.Net)),
    "objects of such classes": (Custom(First.Net()), Custom(Second.Net())),
    "local handlers": (local_class(1, ModelHandler)(), local_class(2, ModelHandler)()),
    "local classes": (Custom(local_class(1)), Custom(local_class(2))),
    "local classes with another base": (
        Custom(local_class(1)),
        Custom(local_class(1, First.Net)),
    ),
    "path": (sklearn(), sklearn("b.pkl")),
    "file type": (sklearn(), sklearn(model_file_type=ModelFileType.JOBLIB)),
    "class": (Custom(1), Other(1)),
    "attribute": (Custom(1), Custom(2)),
    "type of an attribute": (Custom(1), Custom("1")),
    "array": (Custom(np.zeros(3)), Custom(np.zeros(4))),
    "function": (Custom(lambda: 1), Custom(lambda: 2)),
    "closure": tuple(Custom(lambda n=n: n) for n in (1, 2)),
    "environment": (Custom(env_vars={"A": "1"}), Custom(env_vars={"A": "2"})),
    "placement": (Custom(1), Custom(1, large_model=True)),
    "wrapped": (KeyedModelHandler(sklearn()), KeyedModelHandler(sklearn("b.pkl"))),
    "per key": tuple(
        KeyedModelHandler([KeyModelMapping(["k"], sklearn(p))]) for p in ("a.pkl", "b.pkl")
    ),
    "class that the model is made of": (Custom(int), Custom(str)),
}
SAME = {
    "local handlers": (local_class(1, ModelHandler)(), local_class(1, ModelHandler)()),
    "local classes": (Custom(local_class(1)), Custom(local_class(1))),
    "batching": (sklearn(), sklearn(max_batch_size=3, max_batch_bytes=1000)),
    "functions": (sklearn(), sklearn().with_preprocess_fn(len).with_postprocess_fn(len)),
    "no batching": (sklearn(), sklearn().with_no_batching()),
    "inference function": (sklearn(), sklearn(inference_fn=print)),
    "keys": (sklearn(), KeyedModelHandler(sklearn())),
    "maybe keys": (sklearn(), MaybeKeyedModelHandler(sklearn())),
    "equal strings": (Custom("ab", "ab"), Custom("ab", "".join(["a", "b"]))),
    "pickled": (Custom({"a", "b"}, print), pickler.loads(pickler.dumps(Custom({"b", "a"}, print)))),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_differs_for_different_models(pair):
    assert fingerprint(pair[0]) != fingerprint(pair[1])


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_is_equal_for_the_same_model(pair):
    assert fingerprint(pair[0]) == fingerprint(pair[1])


def test_is_equal_in_other_processes():
    program = (
        "from runinference import ModelHandler\n"
        "from runinference.handlers.model_fingerprint import fingerprint\n"
        "class H(ModelHandler):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.names, self.test = {'a', 'b', 'c'}, lambda x: x in {'d', 'e', 'f'}\n"
        "print(fingerprint(H()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
