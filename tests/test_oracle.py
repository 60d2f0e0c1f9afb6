"""This package has the public names of `apache_beam.ml.inference` and produces the same results."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import pickle
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from apache_beam.io.components import rate_limiter
from apache_beam.metrics import MetricsFilter
from sklearn.linear_model import LinearRegression

from common import RUNNER, CollectElements
from defects.packages import BEAM, BOTH, OURS, Package
from runinference import samples

FRAMEWORKS = ("sklearn", "pytorch", "huggingface", "onnx", "xgboost", "tensorflow")
MODULES = [
    name
    for name in ("base", "utils", *(f"{framework}_inference" for framework in FRAMEWORKS))
    if importlib.util.find_spec(f"{OURS.prefix}.{name}")
]
#: Importing TensorFlow takes seconds, so all tests that import it run in one process.
MODULE_PARAMS = [
    pytest.param(name, marks=pytest.mark.xdist_group("tensorflow"))
    if name.startswith("tensorflow")
    else name
    for name in MODULES
]

#: Public names of Beam's modules that this package doesn't have, with the reason.
_LOADING = "an implementation detail of how Beam loads the model"
MISSING_NAMES = {
    "base.OOMProtectedFn": "a wrapper for Beam's calls. Here, an out-of-memory error halves the batch",
    "base.load_model_status": "returns a private object of Beam's DoFn",
    "base.RemoteModelHandler.retry_on_exception": "a decorator that is only used inside the class body",
    "huggingface_inference.no_gpu_available_warning": _LOADING,
    "huggingface_inference.is_gpu_available_torch": _LOADING,
    "huggingface_inference.get_device_torch": _LOADING,
    "huggingface_inference.is_gpu_available_tensorflow": _LOADING,
}
#: Parameters that differ, with the reason.
_CALLED_BY_BEAM = "called by Beam with one positional argument"
_SAME = "the same value, written differently"
DIFFERENT_PARAMETERS = {
    "base.RunInference.expand(pcoll)": _CALLED_BY_BEAM,
    "utils.WatchFilePattern.expand(pcoll)": _CALLED_BY_BEAM,
    "utils.WatchFilePattern.__init__(stop_timestamp)": _SAME,
    "base.RemoteModelHandler.__init__(window_ms)": _SAME,
    "base.RemoteModelHandler.__init__(bucket_ms)": _SAME,
    "huggingface_inference.HuggingFaceModelHandlerKeyedTensor.__init__(framework)": "defaults to PyTorch",
    "huggingface_inference.HuggingFacePipelineModelHandler.run_inference(pipeline)": "named as elsewhere",
    "base.RemoteModelHandler.__init__(retry_filter)": "permanent errors are not retried",
}
#: Parameters whose default differs in all handlers, with the reason.
DIFFERENT_DEFAULTS = {
    "large_model": "None means False",
    "inference_fn": "a function of this package, or None for the default of the class",
}


class Signature(NamedTuple):
    """The signature of a function in Beam's source.

    Attributes:
        positional: The names of the positional parameters, in order.
        defaults: The defaults of all parameters as source text, or None if there is none.
    """

    positional: tuple[str, ...]
    defaults: dict[str, str | None]

    @classmethod
    def parse(cls, node: ast.FunctionDef, method: bool) -> Signature:
        args = node.args
        positional = [argument.arg for argument in args.args]
        defaults: dict[str, str | None] = dict.fromkeys(positional)
        last = positional[len(positional) - len(args.defaults) :]
        defaults |= {name: ast.unparse(d) for name, d in zip(last, args.defaults, strict=True)}
        for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
            defaults[argument.arg] = default and ast.unparse(default)
        if method and positional and positional[0] in ("self", "cls"):
            defaults.pop(positional.pop(0))
        return cls(tuple(positional), defaults)


class ModuleSource(NamedTuple):
    """The public definitions in the source of a Beam module.

    The source is parsed because some modules cannot be imported with current framework versions.
    """

    names: list[str]
    functions: dict[str, Signature]

    @classmethod
    def parse(cls, module: str) -> ModuleSource:
        spec = importlib.util.find_spec(f"{BEAM.prefix}.{module}")
        assert spec
        assert spec.origin
        names, functions = [], {}
        for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names.append(node.name)
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and cls._is_public(method.name):
                        functions[f"{node.name}.{method.name}"] = Signature.parse(method, True)
            elif isinstance(node, ast.FunctionDef):
                names.append(node.name)
                functions[node.name] = Signature.parse(node, False)
            elif isinstance(node, ast.Assign):
                names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        public = [name for name in names if not name.startswith("_")]
        return cls(public, {n: f for n, f in functions.items() if n.split(".")[0] in public})

    @staticmethod
    def _is_public(method: str) -> bool:
        return method == "__init__" or not method.startswith("_")


def find_attribute(module: Any, name: str) -> Any:
    """Return the object with a dotted name such as `Class.method`, or None."""
    for part in name.split("."):
        module = None if module is None else getattr(module, part, None)
    return module


def names_of_module(names: Iterable[str], module: str) -> set[str]:
    return {name for name in names if name.startswith(f"{module}.")}


@pytest.mark.parametrize("module", MODULE_PARAMS)
def test_has_every_public_name_and_method_of_beam(module):
    source, ours = ModuleSource.parse(module), OURS.module(module)
    names = [*source.names, *source.functions]
    missing = {name for name in names if find_attribute(ours, name) is None}
    # Don't report the methods of a missing class.
    missing = {f"{module}.{name}" for name in missing if name.split(".")[0] not in missing - {name}}
    assert missing == names_of_module(MISSING_NAMES, module)


def test_rate_limiters_of_beam_are_those_of_this_package():
    assert issubclass(rate_limiter.EnvoyRateLimiter, OURS.base.RateLimiter)

    class Never(OURS.base.RateLimiter):
        def __init__(self):
            super().__init__(namespace="never")

        def allow(self, **kwargs):
            return False

    assert not Never().allow(hits_added=1)


def test_package_exports_run_inference():
    assert hasattr(importlib.import_module(BEAM.prefix), "RunInference")
    assert hasattr(importlib.import_module(OURS.prefix), "RunInference")


@pytest.mark.parametrize("module", MODULE_PARAMS)
def test_has_every_parameter_of_beam_in_its_position_with_its_default(module):
    our_module = OURS.module(module)
    different = set()
    for name, theirs in ModuleSource.parse(module).functions.items():
        if (ours := find_attribute(our_module, name)) is None:
            continue
        for parameter in theirs.defaults:
            if not _has_parameter(_parameters(ours, "." in name), theirs, parameter):
                different.add(f"{module}.{name}({parameter})")
    assert different == names_of_module(DIFFERENT_PARAMETERS, module)


def _parameters(function: Any, method: bool) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    return parameters[1:] if method and parameters and parameters[0].name == "self" else parameters


def _has_parameter(parameters: list[inspect.Parameter], theirs: Signature, name: str) -> bool:
    ours = {parameter.name: parameter for parameter in parameters}.get(name)
    if ours is None:
        return False
    if name in theirs.positional:
        position = theirs.positional.index(name)
        if len(parameters) <= position or parameters[position].name != name:
            return False
    if name in DIFFERENT_DEFAULTS:
        return ours.default is not ours.empty
    default = ours.default
    texts = [str(default), repr(default), getattr(default, "__name__", "")]
    return theirs.defaults[name] in ([None] if default is ours.empty else texts)


class Files(NamedTuple):
    """The paths of the model files."""

    doubles: str
    triples: str
    frames: str
    weights: str


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 1.0]})
    models = {
        "doubles": LinearRegression().fit([[0], [1], [2]], [0, 2, 4]),
        "triples": LinearRegression().fit([[0], [1], [2]], [0, 3, 6]),
        "frames": LinearRegression().fit(frame, [1.0, 2.0, 3.0]),
    }
    for name, model in models.items():
        (folder / name).write_bytes(pickle.dumps(model))
    torch.manual_seed(0)
    torch.save(Scaled(2, 3).state_dict(), folder / "weights")
    return Files(*(str(folder / name) for name in Files._fields))


class Scaled(torch.nn.Linear):
    """A linear layer with an optional argument."""

    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


ARRAYS = [np.array([float(number)]) for number in range(7)]
TENSORS = [torch.tensor([float(number), 1.0]) for number in range(7)]
FRAMES = [pd.DataFrame({"x": [float(number)], "y": [1.0]}) for number in range(7)]


def numpy(package: Package, files: Files) -> Any:
    return package.sklearn.SklearnModelHandlerNumpy(files.doubles)


def frames(package: Package, files: Files) -> Any:
    return package.sklearn.SklearnModelHandlerPandas(files.frames, max_batch_size=3)


def tensor(package: Package, files: Files) -> Any:
    return package.torch.PytorchModelHandlerTensor(
        files.weights, Scaled, {"in_features": 2, "out_features": 3}
    )


def keyed_tensor(package: Package, files: Files) -> Any:
    return package.torch.PytorchModelHandlerKeyedTensor(
        state_dict_path=files.weights,
        model_class=Scaled,
        model_params={"in_features": 2, "out_features": 3},
        device="CPU",
    )


def keyed(package: Package, files: Files) -> Any:
    return package.base.KeyedModelHandler(numpy(package, files))


def maybe_keyed(package: Package, files: Files) -> Any:
    return package.base.MaybeKeyedModelHandler(numpy(package, files))


def model_per_key(package: Package, files: Files) -> Any:
    mapping, handler = package.base.KeyModelMapping, package.sklearn.SklearnModelHandlerNumpy
    return package.base.KeyedModelHandler(
        [mapping(["a", "b"], handler(files.doubles)), mapping(["c"], handler(files.triples))],
        max_models_per_worker_hint=1,
    )


def with_functions(package: Package, files: Files) -> Any:
    handler = numpy(package, files).with_preprocess_fn(lambda x: x + 1)
    handler = handler.with_preprocess_fn(lambda x: x * 10)
    return handler.with_postprocess_fn(lambda r: r.inference).with_postprocess_fn(float)


def keyed_with_functions(package: Package, files: Files) -> Any:
    handler = keyed(package, files).with_preprocess_fn(lambda pair: (pair[0], pair[1] + 1))
    return handler.with_postprocess_fn(lambda pair: (pair[0], float(pair[1].inference)))


def no_batching(package: Package, files: Files) -> Any:
    return numpy(package, files).with_no_batching()


def custom_handler(package: Package, files: Files) -> Any:
    return package.handler(Doubling)


class Doubling:
    """The methods of a handler, independent of the package."""

    def load_model(self) -> Callable[[float], float]:
        return _double

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return (model(number) for number in batch)


def _double(number: float) -> float:
    return 2 * number


def remote(package: Package, files: Files) -> Any:
    return type("Doubled", (RemoteDoubling, package.remote_handler), {})(namespace="doubled")


class RemoteDoubling:
    """The methods of a remote handler whose endpoint is a function."""

    def create_client(self) -> Callable[[float], float]:
        return _double

    def request(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model(number) for number in batch]


PAIRS = list(zip("abcabca", ARRAYS, strict=True))
NUMBERS = [1.0, 2.0, 3.0]
CASES = {
    numpy: ARRAYS,
    frames: FRAMES,
    tensor: TENSORS,
    keyed_tensor: [{"x": x, "scale": torch.tensor([2.0])} for x in TENSORS],
    keyed: PAIRS,
    maybe_keyed: PAIRS,
    model_per_key: PAIRS,
    with_functions: ARRAYS,
    keyed_with_functions: PAIRS,
    no_batching: [ARRAYS[:3], ARRAYS[3:]],
    custom_handler: NUMBERS,
    remote: NUMBERS,
}


def run(elements: Any, transform: Any) -> tuple[list[str], list[Any], Any]:
    """Apply a transform and return its results (sorted, as text), dead letters and metrics."""
    good: list[Any] = []
    bad: list[Any] = []
    pipeline = beam.Pipeline(runner=RUNNER)
    results = pipeline | beam.Create(elements, reshuffle=False) | transform
    if isinstance(results, tuple):
        results, dead_letters = results
        dead_letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    results | "good" >> beam.ParDo(CollectElements(good))
    run_result = pipeline.run()
    run_result.wait_until_finish()
    return (
        sorted(map(format_result, CollectElements.take(good))),
        CollectElements.take(bad),
        run_result.metrics(),
    )


def format_result(result: Any) -> str:
    """Format a result as text. Equal numbers give equal text, for any container type."""
    if isinstance(result, (tuple, list)):
        return f"({', '.join(map(format_result, result))})"
    if isinstance(result, dict):
        return f"({', '.join(f'{name}: {format_result(value)}' for name, value in result.items())})"
    if isinstance(result, pd.DataFrame):
        result = result.to_numpy()
    if isinstance(result, (np.ndarray, np.generic, torch.Tensor)):
        numbers = np.asarray(result, float)
        return f"{numbers.shape} {np.round(numbers, 4).tolist()}"
    return repr(result)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_results_are_equal_for_all_combinations_of_handler_and_transform(case, files):
    expected, _, _ = run(CASES[case], BEAM.base.RunInference(case(BEAM, files)))
    assert len(expected) >= len(CASES[case])
    for transform, handler in ((OURS, OURS), (OURS, BEAM), (BEAM, OURS)):
        step = transform.base.RunInference(case(handler, files))
        found, _, _ = run(CASES[case], step)
        assert found == expected, f"handler of {handler}, transform of {transform}"


@pytest.mark.parametrize("handler", BOTH, ids=str)
def test_inference_args_reach_the_model(handler, files):
    results = [
        run(
            TENSORS,
            package.base.RunInference(tensor(handler, files), inference_args={"scale": 3}),
        )[0]
        for package in BOTH
    ]
    assert results[0] == results[1]


def test_inference_args_can_be_a_side_input():
    steps = [_scale_by_side_input(package, {}) for package in BOTH]
    assert run(NUMBERS, steps[1])[0] == run(NUMBERS, steps[0])[0] == ["3.0", "6.0", "9.0"]


@pytest.mark.parametrize("options", [{"max_batch_duration_secs": 1}, {"max_batch_size": 2}])
def test_side_input_works_with_every_batching_mode(options):
    assert run(NUMBERS, _scale_by_side_input(OURS, options))[0] == ["3.0", "6.0", "9.0"]


def _scale_by_side_input(package: Package, options: dict[str, Any]) -> Any:
    def expand(numbers: Any) -> Any:
        arguments = numbers.pipeline | "arguments" >> beam.Create([("scale", 3)])
        handler = package.handler(Scaling, **options)
        return numbers | package.base.RunInference(
            handler, inference_args=beam.pvalue.AsDict(arguments)
        )

    return beam.ptransform_fn(expand)()


class Scaling(Doubling):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [number * inference_args["scale"] for number in batch]


@pytest.fixture
def hugging_face(monkeypatch):
    """The Hugging Face modules of both packages.

    Beam's module imports TensorFlow and a class that Transformers 5 removed. Both are replaced by placeholders.
    """
    tensorflow = ModuleType("tensorflow")
    tensorflow.__spec__ = ModuleSpec("tensorflow", None)
    tensorflow.Tensor = object  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        assert transformers.Pipeline  # importing it replaces the module in sys.modules
        patch.setattr(sys.modules["transformers"], "TFAutoModel", object, raising=False)
        patch.setitem(sys.modules, "tensorflow", tensorflow)
        return {package: package.module("huggingface_inference") for package in BOTH}


def test_hugging_face_pipelines_give_equal_results(hugging_face):
    model, (texts, _) = samples.review_classifier(), samples.held_out_reviews()
    outputs = []
    for transform, handler in itertools.product(BOTH, BOTH):
        module = hugging_face[handler]
        step = transform.base.RunInference(
            module.HuggingFacePipelineModelHandler(
                module.PipelineTask.TextClassification, model=model, device="CPU"
            ),
            inference_args={"top_k": 1},
        )
        found, _, _ = run(texts[:10], step | beam.Map(_rounded))
        outputs.append(found)
    assert len(outputs[0]) == 10
    assert outputs == outputs[:1] * 4


def _rounded(result: Any) -> Any:
    [label] = result.inference
    return result.example, {**label, "score": round(label["score"], 4)}


def test_hugging_face_models_give_equal_results_in_both_transforms(hugging_face):
    tokenizer = transformers.AutoTokenizer.from_pretrained(samples.review_classifier())
    examples = [
        {name: torch.tensor(ids) for name, ids in tokenizer(f"a {word} film").items()}
        for word in ("good", "bad", "dull")
    ]
    handler = hugging_face[OURS].HuggingFaceModelHandlerKeyedTensor(
        samples.review_classifier(),
        transformers.AutoModelForSequenceClassification,
        framework="pt",
        device="CPU",
        max_batch_size=2,
    )
    ours, theirs = (
        run(examples, package.base.RunInference(handler))[0] for package in (OURS, BEAM)
    )
    assert len(ours) == 3
    assert ours == theirs


@pytest.mark.parametrize("handler", BOTH, ids=str)
def test_exception_handling_does_not_change_results(handler, files):
    expected, _, _ = run(ARRAYS, BEAM.base.RunInference(numpy(BEAM, files)))
    for transform in BOTH:
        step = transform.base.RunInference(numpy(handler, files)).with_exception_handling()
        found, dead_letters, _ = run(ARRAYS, step)
        assert found == expected
        assert dead_letters == []


@pytest.mark.parametrize(
    "case", [numpy, model_per_key, custom_handler], ids=lambda case: case.__name__
)
def test_has_every_metric_of_beam(case, files):
    names = []
    for package in BOTH:
        _, _, metrics = run(CASES[case], package.base.RunInference(case(package, files)))
        found = metrics.query()
        names.append(
            {
                (metric.key.metric.namespace, metric.key.metric.name)
                for kind in ("counters", "distributions")
                for metric in found[kind]
                if metric.key.step.endswith("BeamML_RunInference")
            }
        )
    theirs, ours = names
    assert len(theirs) > 3
    assert theirs - ours == set()


def test_counts_the_same_number_of_inferences():
    for package in BOTH:
        _, _, metrics = run(NUMBERS, package.base.RunInference(package.handler(Doubling)))
        [counter] = metrics.query(MetricsFilter().with_name("num_inferences"))["counters"]
        assert counter.committed == 3


def test_prediction_results_unpack_and_compare_like_beams():
    ours, theirs = (package.base.PredictionResult(1, 2, "model") for package in BOTH)
    assert ours == theirs
    assert hash(ours) == hash(theirs)
    example, inference, model_id = ours
    assert (example, inference, model_id) == tuple(theirs)
    assert ours._fields == theirs._fields
    assert OURS.base.PredictionResult(1, 2).model_id is None


@pytest.mark.parametrize("prefix", BOTH, ids=str)
def test_accepts_model_metadata_of_both_packages(prefix, files):
    def transform(package: Package, updates: Package) -> Any:
        def expand(arrays: Any) -> Any:
            update = updates.base.ModelMetadata(files.triples, "triples")
            metadata = arrays.pipeline | "update" >> beam.Create([update])
            return arrays | package.base.RunInference(
                numpy(package, files), model_metadata_pcoll=metadata
            )

        return beam.ptransform_fn(expand)()

    assert run(ARRAYS, transform(OURS, prefix))[0] == run(ARRAYS, transform(BEAM, BEAM))[0]
