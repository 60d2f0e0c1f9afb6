"""Every handler runs inside Beam's own transforms, and errors can be caught as the class that Beam raises."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import torch
import xgboost
from apache_beam.ml.inference.base import RunInference as BeamRunInference
from apache_beam.ml.transforms.base import EmbeddingsManager, MLTransform

# Beam's own embedding managers wrap their handler in this class, and there is no public name for it.
from apache_beam.ml.transforms.base import _EmbeddingHandler as EmbeddingHandler
from transformers import AutoModel

from common import RUNNER, CollectElements, run
from defects.packages import BOTH, Package
from handler_cases import FACTORIES, SERVER_FACTORIES, TENSORFLOW_FACTORIES, remote
from runinference import errors
from runinference import huggingface_inference as hf
from runinference.testing.compare import same
from runinference.xgboost_inference import XGBoostModelHandlerNumpy


class Embeddings(EmbeddingsManager):
    """An embedding manager whose model handler is one of this package."""

    def __init__(self, handler, **options):
        super().__init__(columns=["x"], **options)
        self.handler = handler

    def get_model_handler(self):
        return self.handler

    def get_ptransform_for_processing(self, **kwargs):
        return BeamRunInference(EmbeddingHandler(self))


@pytest.fixture(
    params=[
        pytest.param(
            factory,
            marks=[pytest.mark.xdist_group("tensorflow")] * (factory in TENSORFLOW_FACTORIES),
        )
        for factory in FACTORIES
        if factory
        is not remote  # its client is a number, of which Beam can't keep a weak reference
    ],
    ids=lambda factory: factory.__name__,
)
def case(request, tmp_path):
    case = request.param(tmp_path)
    with case if request.param in SERVER_FACTORIES else nullcontext(case) as opened:
        yield opened


def test_every_handler_runs_in_beams_transforms(case, tmp_path):
    expected = case.handler.predict(case.examples)
    rows = [{"x": example} for example in case.examples]
    artifacts = str(tmp_path / "artifacts")
    write = MLTransform(write_artifact_location=artifacts, transforms=[Embeddings(case.handler)])
    direct: list[Any] = []
    written: list[Any] = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        created = pipeline | "examples" >> beam.Create(case.examples, reshuffle=False)
        created | BeamRunInference(case.handler) | "direct" >> beam.ParDo(CollectElements(direct))
        created = pipeline | "rows" >> beam.Create(rows, reshuffle=False)
        created | write | "written" >> beam.ParDo(CollectElements(written))
    read = run(rows, MLTransform(read_artifact_location=artifacts))
    assert same(CollectElements.take(direct), expected)
    for found in (CollectElements.take(written), read):
        assert same([row["x"] for row in found], expected)


class _Same:
    """The methods of a handler that returns its examples."""

    def load_model(self) -> Any:
        return print

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return batch


class Fails(NamedTuple):
    """An action that fails in Beam.

    Attributes:
        action: Called with a package and an empty folder.
        error: The class of Beam's error.
    """

    action: Callable[[Package, Path], Any]
    error: type[BaseException]


def _handler(package: Package, **options: Any) -> Any:
    return package.base.ModelHandler(**options)


def _mapping(package: Package, keys: Any, handler: Any = None) -> Any:
    return package.base.KeyModelMapping(keys, handler or _handler(package))


def _per_key(package: Package) -> Any:
    return package.base.KeyedModelHandler([_mapping(package, ["a"]), _mapping(package, ["b"])])


def _update(package: Package, *paths: tuple[list[str], str]) -> Any:
    handler = _per_key(package)
    handler.override_metrics("")
    updates = [package.base.KeyModelPathMapping(keys, path, "") for keys, path in paths]
    return handler.update_model_paths(handler.load_model(), updates)


def _override(package: Package, method: str) -> Any:
    return type("Remote", (package.remote_handler,), {method: lambda *args: None})


def _run(handler: Any, package: Package, element: Any) -> Any:
    return run([element], package.base.RunInference(handler))


def _sklearn(package: Package, folder: Path, content: bytes, **options: Any) -> Any:
    (folder / "model").write_bytes(content)
    return package.sklearn.SklearnModelHandlerNumpy(str(folder / "model"), **options).load_model()


def _torch(package: Package, folder: Path, content: Any = None, **options: Any) -> Any:
    if isinstance(content, bytes):
        (folder / "model").write_bytes(content)
    else:
        torch.save(content or torch.nn.Linear(2, 1).state_dict(), folder / "model")
    options = {"state_dict_path": str(folder / "model"), "model_class": torch.nn.Linear} | options
    options.setdefault("model_params", {"in_features": 2, "out_features": 1})
    return package.torch.PytorchModelHandlerTensor(**options)


def _call_torch(package: Package, folder: Path, batch: Any, **options: Any) -> Any:
    handler = _torch(package, folder, **options)
    loaded = handler.load_model()
    return list(handler.run_inference(batch, loaded))


FAILS: dict[str, Fails] = {
    "wrapped functions": Fails(
        lambda p, _: p.base.KeyedModelHandler(_handler(p).with_preprocess_fn(str)), Exception
    ),
    "wrapped functions of maybe keyed": Fails(
        lambda p, _: p.base.MaybeKeyedModelHandler(_handler(p).with_postprocess_fn(str)), Exception
    ),
    "mapped functions": Fails(
        lambda p, _: p.base.KeyedModelHandler(
            [_mapping(p, ["a"], _handler(p).with_preprocess_fn(str))]
        ),
        ValueError,
    ),
    "no keys": Fails(lambda p, _: p.base.KeyedModelHandler([_mapping(p, [])]), ValueError),
    "two models of a key": Fails(
        lambda p, _: p.base.KeyedModelHandler([_mapping(p, ["a"]), _mapping(p, ["a"])]), ValueError
    ),
    "unknown key": Fails(lambda p, _: _run(_per_key(p), p, ("c", 1)), KeyError),
    "element without a key": Fails(
        lambda p, _: _run(p.base.KeyedModelHandler(p.handler(_Same)), p, 1), TypeError
    ),
    "overridden load_model": Fails(lambda p, _: _override(p, "load_model"), Exception),
    "overridden run_inference": Fails(lambda p, _: _override(p, "run_inference"), Exception),
    "no load_model": Fails(lambda p, _: _handler(p).load_model(), NotImplementedError),
    "no run_inference": Fails(
        lambda p, _: _handler(p).run_inference([1], None), NotImplementedError
    ),
    "several paths of one model": Fails(
        lambda p, _: p.base.KeyedModelHandler(_handler(p)).update_model_paths(
            object(), [p.base.KeyModelPathMapping(["a"], "m", "")]
        ),
        RuntimeError,
    ),
    "one path of several models": Fails(
        lambda p, _: _per_key(p).update_model_path("m"), RuntimeError
    ),
    "update with an empty path": Fails(lambda p, _: _update(p, (["a", "b"], "")), ValueError),
    "update that repeats a key": Fails(
        lambda p, _: _update(p, (["a", "b"], "m"), (["a"], "n")), ValueError
    ),
    "update of an unknown key": Fails(lambda p, _: _update(p, (["a", "b", "c"], "m")), ValueError),
    "missing estimator": Fails(
        lambda p, f: _run(p.sklearn.SklearnModelHandlerNumpy(str(f / "none")), p, np.zeros(2)),
        RuntimeError,
    ),
    "missing estimator without a pipeline": Fails(
        lambda p, f: p.sklearn.SklearnModelHandlerNumpy(str(f / "none")).load_model(),
        FileNotFoundError,
    ),
    "unknown file type": Fails(
        lambda p, f: _sklearn(p, f, b"", model_file_type=None), AssertionError
    ),
    "file that is not a pickle": Fails(
        lambda p, f: _sklearn(p, f, b"nonsense"), pickle.UnpicklingError
    ),
    "empty pickle": Fails(lambda p, f: _sklearn(p, f, b""), EOFError),
    "frame of two rows": Fails(
        lambda p, _: p.sklearn.SklearnModelHandlerPandas("unused").run_inference(
            [pd.DataFrame({"x": [1, 2]})], None
        ),
        ValueError,
    ),
    "weights without a class": Fails(
        lambda p, f: _torch(p, f, model_class=None, model_params=None), RuntimeError
    ),
    "class without weights": Fails(lambda p, f: _torch(p, f, state_dict_path=None), RuntimeError),
    "two kinds of models": Fails(
        lambda p, f: _torch(p, f, torch_script_model_path="m"), RuntimeError
    ),
    "missing weights": Fails(
        lambda p, f: _torch(p, f, state_dict_path=str(f / "none")).load_model(), FileNotFoundError
    ),
    "weights of another shape": Fails(
        lambda p, f: _torch(p, f, torch.nn.Linear(3, 1).state_dict()).load_model(), RuntimeError
    ),
    "file without weights": Fails(
        lambda p, f: _torch(p, f, b"nonsense").load_model(), pickle.UnpicklingError
    ),
    "tensors of different shapes": Fails(
        lambda p, f: _call_torch(p, f, [torch.ones(2), torch.ones(3)]), RuntimeError
    ),
    "array for a tensor": Fails(lambda p, f: _call_torch(p, f, [np.ones(2)]), TypeError),
}


@pytest.mark.parametrize("package", BOTH, ids=str)
@pytest.mark.parametrize("fails", FAILS.values(), ids=FAILS)
def test_errors_can_be_caught_as_the_class_that_beam_raises(fails, package, tmp_path):
    with pytest.raises(fails.error):
        fails.action(package, tmp_path)


def _xgboost(folder: Path, content: bytes) -> Any:
    (folder / "model.json").write_bytes(content)
    handler = XGBoostModelHandlerNumpy(xgboost.XGBClassifier, str(folder / "model.json"))
    return handler.load_model()


def _config_without_weights(folder: Path) -> Any:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return hf.HuggingFaceModelHandlerTensor(str(folder), AutoModel)


#: Errors of modules of Beam that need other packages, or other versions, than those that are installed.
FAILS_HERE: dict[str, tuple[Callable[[Path], Any], type[BaseException]]] = {
    "empty booster": (lambda f: _xgboost(f, b""), xgboost.core.XGBoostError),
    "truncated booster": (lambda f: _xgboost(f, b'{"learner"'), xgboost.core.XGBoostError),
    "other json": (lambda f: _xgboost(f, b"{}"), xgboost.core.XGBoostError),
    "archived booster": (lambda f: _xgboost(f, b"PK\x03\x04"), xgboost.core.XGBoostError),
    "no class": (lambda _: hf.HuggingFaceModelHandlerTensor("m", None), RuntimeError),
    "no model": (lambda _: hf.HuggingFaceModelHandlerKeyedTensor("", AutoModel), RuntimeError),
    "neither task nor model": (lambda _: hf.HuggingFacePipelineModelHandler(), RuntimeError),
    "unknown device": (
        lambda _: hf.HuggingFacePipelineModelHandler("fill-mask", device="TPU"),
        ValueError,
    ),
    "two devices": (
        lambda _: hf.HuggingFacePipelineModelHandler(
            "fill-mask", device="CPU", load_pipeline_args={"device": "cpu"}
        ),
        ValueError,
    ),
    "folder without weights": (
        lambda f: _config_without_weights(f).load_model(),
        OSError,
    ),
    "missing folder": (
        lambda f: hf.HuggingFaceModelHandlerTensor(str(f / "none"), AutoModel).load_model(),
        OSError,
    ),
}


@pytest.mark.parametrize(("action", "error"), FAILS_HERE.values(), ids=FAILS_HERE)
def test_errors_can_be_caught_as_the_class_of_the_framework(action, error, tmp_path):
    with pytest.raises(error):
        action(tmp_path)


@pytest.mark.xdist_group("tensorflow")
def test_tensorflow_errors_can_be_caught_as_value_errors(tmp_path):
    from runinference.tensorflow_inference import ModelType, TFModelHandlerNumpy

    for options in ((str(tmp_path / "none"),), (str(tmp_path),), ("m", ModelType.SAVED_WEIGHTS)):
        with pytest.raises(ValueError, match="."):
            TFModelHandlerNumpy(*options).load_model()


def test_errors_survive_pickling_and_beams_annotation():
    """Runners send errors between processes, and Beam rebuilds them from their message to add the step."""
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.RunInferenceError):
            if error is errors.PartialBatchError:
                continue
            rebuilt = pickle.loads(pickle.dumps(error("what happened")))
            assert type(rebuilt) is error, name
            assert rebuilt.args == ("what happened",), name
            assert str(rebuilt) == "what happened", name
