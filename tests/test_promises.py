"""One table of promises, and every handler keeps it: on small real models, each with its real framework."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import lightgbm
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xgboost
from sklearn.linear_model import BayesianRidge
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
)

from common import RUNNER, CollectElements, run
from onnx_models import arithmetic, write_model
from runinference import KeyedModelHandler, PredictionResult, RunInference, samples
from runinference import huggingface_inference as hf
from runinference.collate.pytree import leaves_with_path
from runinference.errors import OptionError
from runinference.http_inference import HTTPModelHandler, KServeV2
from runinference.lightgbm_inference import (
    LightGBMModelHandlerNumpy,
    LightGBMModelHandlerPandas,
    LightGBMModelHandlerSciPy,
)
from runinference.onnx_inference import OnnxModelHandlerNumpy
from runinference.openai_inference import OpenAIChatModelHandler, OpenAIEmbeddingsModelHandler
from runinference.pytorch_inference import PytorchModelHandlerKeyedTensor, PytorchModelHandlerTensor
from runinference.remote.handler import RemoteModelHandler
from runinference.samples import servers
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas
from runinference.testing import check_handler
from runinference.testing.compare import retained_bytes, same
from runinference.xgboost_inference import (
    XGBoostModelHandlerNumpy,
    XGBoostModelHandlerPandas,
    XGBoostModelHandlerSciPy,
)
from tiny_transformers import TEXTS, bert, saved

FOUR = np.array([[0.0, 1.0], [5.0, 2.0], [1.0, 7.0], [3.0, 3.0]], np.float32)
NAMES = ["width", "height"]
FRAMES = [pd.DataFrame([row], columns=NAMES) for row in FOUR]


class Case(NamedTuple):
    """A handler, and what it is tried with.

    Attributes:
        handler: The handler.
        examples: What it takes.
        bad: What it cannot take.
        model_id: What its results say made them.
        updated: The path of another model.
        arguments: Inference arguments that make other results.
        dictionary: The handler with a model that returns a dictionary for a batch.
        n_bytes: The bytes of the examples.
    """

    handler: Any
    examples: list[Any]
    bad: Any
    model_id: str
    updated: str | None = None
    arguments: dict[str, Any] | None = None
    dictionary: Any = None
    n_bytes: int | None = None


def pickled(path: Path, rows: Any, slope: float) -> str:
    path.write_bytes(pickle.dumps(BayesianRidge().fit(rows, slope * FOUR[:, 0] + FOUR[:, 1])))
    return str(path)


def sklearn_numpy(folder: Path) -> Case:
    one, other = (pickled(folder / f"rows{n}", FOUR, n) for n in (1, 3))

    def by_name(model, batch, inference_args=None):
        return {"progress": model.predict(np.stack(batch)), "unit": "cm"}

    return Case(
        SklearnModelHandlerNumpy(one),
        list(FOUR),
        np.ones(3, np.float32),
        one,
        updated=other,
        arguments={"return_std": True},
        dictionary=SklearnModelHandlerNumpy(one, inference_fn=by_name),
        n_bytes=FOUR.nbytes,
    )


def sklearn_pandas(folder: Path) -> Case:
    one, other = (pickled(folder / f"frames{n}", pd.concat(FRAMES), n) for n in (1, 3))

    def by_name(model, batch, inference_args=None):
        return {"progress": model.predict(pd.concat(batch)), "unit": "cm"}, batch

    return Case(
        SklearnModelHandlerPandas(one),
        FRAMES,
        pd.DataFrame([[1.0]], columns=["depth"]),
        one,
        updated=other,
        arguments={"return_std": True},
        dictionary=SklearnModelHandlerPandas(one, inference_fn=by_name),
    )


class Scaled(torch.nn.Linear):
    """Takes an argument at each call."""

    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Named(Scaled):
    """Answers with a dictionary."""

    def forward(self, x, scale=1.0):
        return {"scaled": super().forward(x, scale), "scale": scale}


def weights(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    torch.save(Scaled(2, 3).state_dict(), path)
    return str(path)


def pytorch_tensor(folder: Path, kind=PytorchModelHandlerTensor, examples=None, bad=None) -> Case:
    one, other = (weights(folder / f"{kind.__name__}{seed}", seed) for seed in (0, 1))
    size = {"in_features": 2, "out_features": 3}
    return Case(
        kind(one, Scaled, size),
        [torch.from_numpy(row) for row in FOUR] if examples is None else examples,
        torch.ones(3) if bad is None else bad,
        one,
        updated=other,
        arguments={"scale": 3.0},
        dictionary=kind(one, Named, size),
        n_bytes=FOUR.nbytes if examples is None else None,
    )


def pytorch_keyed_tensor(folder: Path) -> Case:
    examples = [{"x": torch.from_numpy(row)} for row in FOUR]
    return pytorch_tensor(folder, PytorchModelHandlerKeyedTensor, examples, {"x": torch.ones(3)})


def two(folder: Path, model: Any) -> Iterator[str]:
    """The directories of two models of one kind, with other weights."""
    made = model()
    yield saved(folder / "one", made)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(-0.5)
    yield saved(folder / "other", made)


def classifiers(folder: Path) -> list[str]:
    return list(two(folder, lambda: BertForSequenceClassification(bert(num_labels=3))))


def encoders(folder: Path) -> list[str]:
    return list(two(folder, lambda: BertModel(bert())))


def huggingface_pipeline(folder: Path) -> Case:
    one, other = classifiers(folder)
    return Case(
        hf.HuggingFacePipelineModelHandler("text-classification", one),
        TEXTS,
        3,
        one,
        updated=other,
        arguments={"top_k": None},
        dictionary=hf.HuggingFacePipelineModelHandler("text-classification", one),
    )


IDS = [torch.tensor([2, n, 7, 3]) for n in range(5, 9)]


def huggingface_tensor(folder: Path) -> Case:
    one, other = encoders(folder)
    handler = hf.HuggingFaceModelHandlerTensor(one, AutoModel)
    return Case(
        handler,
        IDS,
        torch.tensor([2, 999, 7, 3]),
        one,
        updated=other,
        arguments={"output_hidden_states": True},
        dictionary=handler,
        n_bytes=4 * 4 * 8,
    )


def huggingface_keyed_tensor(folder: Path) -> Case:
    one, other = encoders(folder)
    handler = hf.HuggingFaceModelHandlerKeyedTensor(one, AutoModel, "pt")
    return Case(
        handler,
        [{"input_ids": ids, "attention_mask": torch.ones(4, dtype=torch.long)} for ids in IDS],
        {
            "input_ids": torch.tensor([2, 999, 7, 3]),
            "attention_mask": torch.ones(4, dtype=torch.long),
        },
        one,
        updated=other,
        arguments={"output_hidden_states": True},
        dictionary=handler,
    )


def huggingface_text(folder: Path) -> Case:
    one, other = classifiers(folder)
    handler = hf.HuggingFaceModelHandlerText(one, AutoModelForSequenceClassification)
    return Case(
        handler,
        TEXTS,
        3,
        one,
        updated=other,
        arguments={"output_hidden_states": True},
        dictionary=handler,
    )


def huggingface_embedding(folder: Path) -> Case:
    one, other = encoders(folder)
    return Case(hf.HuggingFaceModelHandlerEmbedding(one), TEXTS, 3, one, updated=other)


def onnx(folder: Path) -> Case:
    one = write_model(folder / "one", arithmetic())
    product = arithmetic()
    product.graph.node[0].op_type = "Mul"
    other = write_model(folder / "other", product)
    return Case(
        OnnxModelHandlerNumpy(one, output_names="sum"),
        [{"a": row, "b": row} for row in FOUR],
        {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)},
        one,
        updated=other,
        arguments={"factor": 3.0},
        dictionary=OnnxModelHandlerNumpy(one, output_names=["sum", "difference"]),
    )


def booster(path: Path, rows: Any, slope: float) -> str:
    model = xgboost.XGBRegressor(n_estimators=20, max_depth=2, min_child_weight=0)
    model.fit(rows, slope * FOUR[:, 0] + FOUR[:, 1])
    model.save_model(path)
    return str(path)


def of_xgboost(folder: Path, kind: Any, rows: Any, examples: list[Any], bad: Any) -> Case:
    one, other = (booster(folder / f"{n}.json", rows, n) for n in (1, 3))

    def by_name(batch, model, inference_args=None):
        join = pd.concat if isinstance(batch[0], pd.DataFrame) else np.vstack
        tables = [row.toarray() if scipy.sparse.issparse(row) else row for row in batch]
        return {"progress": model.predict(join(tables)), "unit": "cm"}

    return Case(
        kind(xgboost.XGBRegressor, one),
        examples,
        bad,
        one,
        updated=other,
        arguments={"iteration_range": (0, 5)},
        dictionary=kind(xgboost.XGBRegressor, one, by_name),
        n_bytes=FOUR.nbytes if kind is XGBoostModelHandlerNumpy else None,
    )


def xgboost_numpy(folder: Path) -> Case:
    return of_xgboost(folder, XGBoostModelHandlerNumpy, FOUR, list(FOUR), np.ones(3, np.float32))


def xgboost_pandas(folder: Path) -> Case:
    bad = pd.DataFrame([[1.0]], columns=["depth"])
    return of_xgboost(folder, XGBoostModelHandlerPandas, pd.concat(FRAMES), FRAMES, bad)


def xgboost_scipy(folder: Path) -> Case:
    sparse = [scipy.sparse.csr_matrix(row[None]) for row in FOUR]
    bad = scipy.sparse.csr_matrix(np.ones((1, 3)))
    return of_xgboost(folder, XGBoostModelHandlerSciPy, FOUR, sparse, bad)


def of_lightgbm(folder: Path, kind: Any, rows: Any, examples: list[Any], bad: Any) -> Case:
    def path(slope):
        progress = slope * FOUR[:, 0] + FOUR[:, 1]
        model = lightgbm.LGBMRegressor(
            n_estimators=5, min_child_samples=1, min_data_in_bin=1, verbose=-1
        )
        model.fit(rows, progress).booster_.save_model(folder / f"{slope}.txt")
        return str(folder / f"{slope}.txt")

    one = path(1)
    return Case(
        kind(one),
        examples,
        bad,
        one,
        updated=path(3),
        arguments={"num_iteration": 1, "raw_score": True},
    )


def lightgbm_numpy(folder: Path) -> Case:
    return of_lightgbm(folder, LightGBMModelHandlerNumpy, FOUR, list(FOUR), np.ones(3, np.float32))


def lightgbm_pandas(folder: Path) -> Case:
    bad = pd.DataFrame([[1.0]], columns=["depth"])
    return of_lightgbm(folder, LightGBMModelHandlerPandas, pd.concat(FRAMES), FRAMES, bad)


def lightgbm_scipy(folder: Path) -> Case:
    sparse = [scipy.sparse.csr_matrix(row[None]) for row in FOUR]
    bad = scipy.sparse.csr_matrix(np.ones((1, 3)))
    return of_lightgbm(folder, LightGBMModelHandlerSciPy, FOUR, sparse, bad)


def of_tensorflow(folder: Path, name: str, handler: str, examples: Any, bad: Any) -> Case:
    keras = importlib.import_module("keras")
    module = importlib.import_module("runinference.tensorflow_inference")

    def model(factor, by_name=False):
        x = keras.Input((2,), name="x")
        y = keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(factor))(x)
        kept = keras.layers.Dropout(0.9, seed=0)(y)
        return keras.Model(x, {"kept": kept, "all": y} if by_name else kept)

    def path(file, made):
        if name:
            made.save(folder / f"{file}{name}")
        else:
            made.export(folder / file, verbose=False)
        return str(folder / f"{file}{name}")

    kind = getattr(module, handler)
    one = path("one", model(1.0))
    return Case(
        kind(one),
        list(examples),
        bad,
        one,
        updated=path("other", model(3.0)),
        dictionary=kind(path("named", model(1.0, by_name=True))),
        n_bytes=FOUR.nbytes,
    )


def tensorflow_numpy(folder: Path) -> Case:
    return of_tensorflow(folder, ".keras", "TFModelHandlerNumpy", FOUR, np.ones(3))


def tensorflow_tensor(folder: Path) -> Case:
    tf = importlib.import_module("tensorflow")
    return of_tensorflow(folder, "", "TFModelHandlerTensor", map(tf.constant, FOUR), tf.ones(3))


class Doubled(RemoteModelHandler):
    """Asks a function that stands for a service."""

    def __init__(self, path="2", **options):
        super().__init__(namespace="doubled", throttle_delay_secs=0, **options)
        self.path = path

    def create_client(self):
        return float(self.path)

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def request(self, batch, model, inference_args=None):
        plus = (inference_args or {}).get("plus", 0)
        return [PredictionResult(x, model * x + plus, self.path) for x in batch]


class DoubledByName(Doubled):
    def request(self, batch, model, inference_args=None):
        return {"doubled": [model * x for x in batch]}


def remote(folder: Path) -> Case:
    return Case(
        Doubled(), [1.0, 4.0, 2.0], "x", "2", "3", arguments={"plus": 1}, dictionary=DoubledByName()
    )


@contextmanager
def openai_chat(folder: Path) -> Iterator[Case]:
    with servers.llm() as url:
        handler = OpenAIChatModelHandler(url, "shout", None, throttle_delay_secs=0)
        yield Case(handler, ["who", "is", "there"], 3, "shout")


@contextmanager
def openai_embeddings(folder: Path) -> Iterator[Case]:
    with servers.llm() as url:
        handler = OpenAIEmbeddingsModelHandler(url, "words", None, throttle_delay_secs=0)
        yield Case(handler, ["who", "is", "there"], 3, "words")


@contextmanager
def http(folder: Path) -> Iterator[Case]:
    images, _ = samples.held_out_digits()
    with servers.digits() as url:
        handler = HTTPModelHandler(url, KServeV2("digits"), throttle_delay_secs=0)
        yield Case(handler, list(images[:4]), np.ones(3), "digits", n_bytes=images[:4].nbytes)


def keyed(folder: Path) -> Case:
    case = sklearn_numpy(folder)
    return case._replace(
        handler=KeyedModelHandler(case.handler),
        examples=list(zip("abca", case.examples, strict=True)),
        bad=("d", case.bad),
        dictionary=KeyedModelHandler(case.dictionary),
        n_bytes=None,
    )


TENSORFLOW = pytest.mark.xdist_group("tensorflow")
FACTORIES: list[Any] = [
    sklearn_numpy,
    sklearn_pandas,
    pytorch_tensor,
    pytorch_keyed_tensor,
    huggingface_pipeline,
    huggingface_tensor,
    huggingface_keyed_tensor,
    huggingface_text,
    huggingface_embedding,
    onnx,
    xgboost_numpy,
    xgboost_pandas,
    xgboost_scipy,
    lightgbm_numpy,
    lightgbm_pandas,
    lightgbm_scipy,
    tensorflow_numpy,
    tensorflow_tensor,
    remote,
    openai_chat,
    openai_embeddings,
    http,
    keyed,
]


_OF_TENSORFLOW = (tensorflow_numpy, tensorflow_tensor)
_OF_LIGHTGBM = (lightgbm_numpy, lightgbm_pandas, lightgbm_scipy)
_OF_SERVERS = (openai_chat, openai_embeddings, http)

# What a promise does not speak of: models whose call takes no arguments that change results (those of these
# servers, and of this Keras), whose answers have one form (LightGBM's, embeddings, what these servers say), and
# handlers whose examples have several lengths or are sent in requests, which refuse whole results.
LEFT_OUT = {
    "test_inference_args_reach_the_model": (
        *_OF_SERVERS,
        *_OF_TENSORFLOW,
        huggingface_embedding,
    ),
    "test_the_dictionary_of_a_batch_becomes_one_for_each_element": (
        *_OF_SERVERS,
        *_OF_LIGHTGBM,
        huggingface_embedding,
    ),
}
REFUSES_WHOLE_RESULTS = (*_OF_SERVERS, remote, huggingface_text, huggingface_embedding)


def pytest_generate_tests(metafunc):
    """Each promise is for every handler but those that it does not speak of."""
    if "case" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__
    left_out = REFUSES_WHOLE_RESULTS if "whole" in metafunc.fixturenames else LEFT_OUT.get(name, ())
    spoken_of = [factory for factory in FACTORIES if factory not in left_out]
    if name == "test_whole_results_are_refused_by_name":
        spoken_of = list(REFUSES_WHOLE_RESULTS)
    marked = [
        pytest.param(factory, marks=TENSORFLOW) if factory in _OF_TENSORFLOW else factory
        for factory in spoken_of
    ]
    ids = [factory.__name__ for factory in spoken_of]
    metafunc.parametrize("case", marked, indirect=True, scope="module", ids=ids)


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    factory: Callable[[Path], Any] = request.param
    made = factory(tmp_path_factory.mktemp(factory.__name__))
    if isinstance(made, Case):
        yield made
    else:
        with made as served:
            yield served


def test_it_passes_the_conformance_kit(case):
    report = check_handler(
        case.handler,
        case.examples,
        inference_args=case.arguments,
        bad_example=case.bad,
        updated_path=case.updated,
    )
    assert set(report.skipped) == (set() if case.updated else {"updates"})


def prediction(result):
    """A result without its key."""
    return result[1] if type(result) is tuple else result


def inference(result):
    """What the model said, also where the handler gives nothing else."""
    return getattr(prediction(result), "inference", result)


def test_its_results_say_which_model_made_them(case):
    results = case.handler.predict(case.examples)
    assert {prediction(result).model_id for result in results} == {case.model_id}


def test_inference_args_reach_the_model(case):
    without = case.handler.predict(case.examples)
    found = case.handler.predict(case.examples, case.arguments)
    assert not any(map(same, found, without))


def test_the_dictionary_of_a_batch_becomes_one_for_each_element(case):
    singly = [case.dictionary.predict([example])[0] for example in case.examples]
    for result, alone in zip(case.dictionary.predict(case.examples), singly, strict=True):
        assert len(dict(inference(result))) > 0
        assert same(inference(result), inference(alone))


def test_the_bytes_of_a_batch_are_those_of_its_data(case):
    n_bytes = case.handler.get_num_bytes(case.examples)
    assert n_bytes == case.n_bytes if case.n_bytes is not None else n_bytes > 0


def test_one_bad_element_is_set_aside_alone_and_what_happens_is_counted(case):
    good: list[Any] = []
    bad: list[Any] = []
    pipeline = beam.Pipeline(runner=RUNNER)
    elements = [*case.examples[:2], case.bad, *case.examples[2:]]
    created = pipeline | "some bad" >> beam.Create(elements, reshuffle=False)
    results, failed = created | RunInference(case.handler).with_exception_handling()
    _ = results | "good" >> beam.ParDo(CollectElements(good))
    _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    created = pipeline | "all good" >> beam.Create(case.examples, reshuffle=False)
    _ = created | "all of them" >> RunInference(case.handler)
    running = pipeline.run()
    running.wait_until_finish()

    found, [(element, (_, message, _))] = CollectElements.take(good), CollectElements.take(bad)
    assert len(found) == len(case.examples)
    assert {prediction(result).model_id for result in found} == {case.model_id}
    assert type(element) is type(case.bad)
    assert message
    metrics = running.metrics().query()
    assert summed(metrics["counters"], "num_inferences") == 2 * len(case.examples)
    n_bytes = summed(metrics["distributions"], "inference_request_batch_byte_size")
    assert n_bytes >= (case.n_bytes or 1)


def summed(metrics, name):
    """The sum of a metric over all steps."""
    found = [metric.committed for metric in metrics if metric.key.metric.name == name]
    return sum(getattr(committed, "sum", committed) for committed in found)


def stack_batch(examples):
    """The examples as one element: an array, a table, a dictionary of arrays; of texts their list."""
    first = examples[0]
    if isinstance(first, tuple):  # with keys: the rows of one
        return first[0], stack_batch([example for _, example in examples])
    if isinstance(first, dict):
        return {name: stack_batch([example[name] for example in examples]) for name in first}
    if isinstance(first, pd.DataFrame):
        return pd.concat(examples)
    if scipy.sparse.issparse(first):
        return scipy.sparse.vstack(examples, format="csr")
    if isinstance(first, torch.Tensor):
        return torch.stack(examples)
    if type(first).__module__.startswith("tensorflow"):
        return importlib.import_module("tensorflow").stack(examples)
    return np.stack(examples) if isinstance(first, np.ndarray) else list(examples)


def split_rows(inference, n):
    """The rows of a whole result, or of one of a dictionary's arrays."""
    if isinstance(inference, dict):
        arrays = {name: part for name, part in inference.items() if np.ndim(part) > 0}
        return [{name: part[i] for name, part in arrays.items()} for i in range(n)]
    return list(inference)


def test_whole_results_are_refused_by_name(case):
    with pytest.raises(OptionError, match="leave whole_results out"):
        case.handler.with_no_batching(whole_results=True)


@pytest.fixture
def whole(case):
    """The handler with whole results."""
    return case.handler.with_no_batching(whole_results=True)


def test_a_whole_array_gets_one_result_whose_rows_are_those_of_single_elements(case, whole):
    element, n = stack_batch(case.examples), len(case.examples)
    [result] = run([element], RunInference(whole))
    [predicted] = whole.predict([element])
    assert type(prediction(result)) is PredictionResult
    assert prediction(result).model_id == case.model_id
    assert type(prediction(result).example) is type(prediction(element))
    assert same(predicted, result)
    singly = [inference(one) for one in case.handler.predict(case.examples)]
    singly = [np.ravel(one) if np.ndim(one) == 1 and len(one) == 1 else one for one in singly]
    for row, one in zip(split_rows(inference(result), n), singly, strict=True):
        assert same(np.ravel(row), np.ravel(one)) if np.ndim(one) else same(row, one)
    for _, part in leaves_with_path(inference(result)):
        assert retained_bytes(part) <= getattr(part, "nbytes", 0)


def test_a_whole_array_that_fails_is_one_dead_letter_and_its_rows_are_counted(case, whole):
    good, bad = [], []
    element = stack_batch(case.examples)
    wrong = stack_batch([case.bad, case.bad]) if not isinstance(case.bad, int) else [3, 3]
    pipeline = beam.Pipeline(runner=RUNNER)
    created = pipeline | beam.Create([wrong, element, element], reshuffle=False)
    results, letters = created | RunInference(whole).with_exception_handling()
    _ = results | "good" >> beam.ParDo(CollectElements(good))
    _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    running = pipeline.run()
    running.wait_until_finish()
    [(failed, _)] = CollectElements.take(bad)
    assert same(failed, wrong) if not isinstance(failed, pd.DataFrame) else failed.equals(wrong)
    assert len(CollectElements.take(good)) == 2
    metrics = running.metrics().query()
    assert summed(metrics["counters"], "num_inferences") == 2 * len(case.examples)
    assert summed(metrics["counters"], "failed_elements") == 1
    sizes = summed(metrics["distributions"], "inference_request_batch_size")
    assert sizes == 2 * len(case.examples)
    n_bytes = summed(metrics["distributions"], "inference_request_batch_byte_size")
    assert n_bytes >= 2 * (case.n_bytes or 1)
