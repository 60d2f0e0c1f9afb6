"""One small real model for every handler, with examples, for tests that hold for all handlers."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import pandas as pd
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

from onnx_models import arithmetic, write_model
from runinference import KeyedModelHandler, PredictionResult, samples
from runinference import huggingface_inference as hf
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
from runinference.xgboost_inference import (
    XGBoostModelHandlerNumpy,
    XGBoostModelHandlerPandas,
    XGBoostModelHandlerSciPy,
)
from tiny_transformers import TEXTS, bert, saved

ROWS = np.array([[0.0, 1.0], [5.0, 2.0], [1.0, 7.0], [3.0, 3.0]], np.float32)
NAMES = ["width", "height"]
FRAMES = [pd.DataFrame([row], columns=NAMES) for row in ROWS]


class Case(NamedTuple):
    """A handler and the inputs to test it with.

    Attributes:
        handler: The handler.
        examples: Valid examples.
        invalid: An example that the handler or its model rejects.
        model_id: The expected `model_id` of the results.
        updated_path: The path of another model, if the handler supports model updates.
        arguments: Inference arguments that change the results.
        dictionary_handler: The handler with a model that returns a dictionary for a batch.
        n_bytes: The size of the examples in bytes, if it is known exactly.
    """

    handler: Any
    examples: list[Any]
    invalid: Any
    model_id: str
    updated_path: str | None = None
    arguments: dict[str, Any] | None = None
    dictionary_handler: Any = None
    n_bytes: int | None = None


def save_estimator(path: Path, rows: Any, slope: float) -> str:
    path.write_bytes(pickle.dumps(BayesianRidge().fit(rows, slope * ROWS[:, 0] + ROWS[:, 1])))
    return str(path)


def sklearn_numpy(folder: Path) -> Case:
    path, other_path = (save_estimator(folder / f"rows{n}", ROWS, n) for n in (1, 3))

    def predict_dictionary(model, batch, inference_args=None):
        return {"progress": model.predict(np.stack(batch)), "unit": "cm"}

    return Case(
        SklearnModelHandlerNumpy(path),
        list(ROWS),
        np.ones(3, np.float32),
        path,
        updated_path=other_path,
        arguments={"return_std": True},
        dictionary_handler=SklearnModelHandlerNumpy(path, inference_fn=predict_dictionary),
        n_bytes=ROWS.nbytes,
    )


def sklearn_pandas(folder: Path) -> Case:
    path, other_path = (save_estimator(folder / f"frames{n}", pd.concat(FRAMES), n) for n in (1, 3))

    def predict_dictionary(model, batch, inference_args=None):
        return {"progress": model.predict(pd.concat(batch)), "unit": "cm"}, batch

    return Case(
        SklearnModelHandlerPandas(path),
        FRAMES,
        pd.DataFrame([[1.0]], columns=["depth"]),
        path,
        updated_path=other_path,
        arguments={"return_std": True},
        dictionary_handler=SklearnModelHandlerPandas(path, inference_fn=predict_dictionary),
    )


class Scaled(torch.nn.Linear):
    """A linear layer with an optional argument."""

    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class ScaledDictionary(Scaled):
    """A linear layer that returns a dictionary."""

    def forward(self, x, scale=1.0):
        return {"scaled": super().forward(x, scale), "scale": scale}


def save_weights(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    torch.save(Scaled(2, 3).state_dict(), path)
    return str(path)


def pytorch_tensor(
    folder: Path, handler_class=PytorchModelHandlerTensor, examples=None, invalid=None
) -> Case:
    path, other_path = (
        save_weights(folder / f"{handler_class.__name__}{seed}", seed) for seed in (0, 1)
    )
    size = {"in_features": 2, "out_features": 3}
    return Case(
        handler_class(path, Scaled, size),
        [torch.from_numpy(row) for row in ROWS] if examples is None else examples,
        torch.ones(3) if invalid is None else invalid,
        path,
        updated_path=other_path,
        arguments={"scale": 3.0},
        dictionary_handler=handler_class(path, ScaledDictionary, size),
        n_bytes=ROWS.nbytes if examples is None else None,
    )


def pytorch_keyed_tensor(folder: Path) -> Case:
    examples = [{"x": torch.from_numpy(row)} for row in ROWS]
    return pytorch_tensor(folder, PytorchModelHandlerKeyedTensor, examples, {"x": torch.ones(3)})


def save_two_models(folder: Path, make_model: Callable[[], Any]) -> Iterator[str]:
    """Save a model twice, with different weights, and yield the two directories."""
    model = make_model()
    yield saved(folder / "one", model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    yield saved(folder / "other", model)


def save_classifiers(folder: Path) -> list[str]:
    return list(save_two_models(folder, lambda: BertForSequenceClassification(bert(num_labels=3))))


def save_encoders(folder: Path) -> list[str]:
    return list(save_two_models(folder, lambda: BertModel(bert())))


def huggingface_pipeline(folder: Path) -> Case:
    path, other_path = save_classifiers(folder)
    return Case(
        hf.HuggingFacePipelineModelHandler("text-classification", path),
        TEXTS,
        3,
        path,
        updated_path=other_path,
        arguments={"top_k": None},
        dictionary_handler=hf.HuggingFacePipelineModelHandler("text-classification", path),
    )


IDS = [torch.tensor([2, n, 7, 3]) for n in range(5, 9)]


def huggingface_tensor(folder: Path) -> Case:
    path, other_path = save_encoders(folder)
    handler = hf.HuggingFaceModelHandlerTensor(path, AutoModel)
    return Case(
        handler,
        IDS,
        torch.tensor([2, 999, 7, 3]),
        path,
        updated_path=other_path,
        arguments={"output_hidden_states": True},
        dictionary_handler=handler,
        n_bytes=4 * 4 * 8,
    )


def huggingface_keyed_tensor(folder: Path) -> Case:
    path, other_path = save_encoders(folder)
    handler = hf.HuggingFaceModelHandlerKeyedTensor(path, AutoModel, "pt")
    return Case(
        handler,
        [{"input_ids": ids, "attention_mask": torch.ones(4, dtype=torch.long)} for ids in IDS],
        {
            "input_ids": torch.tensor([2, 999, 7, 3]),
            "attention_mask": torch.ones(4, dtype=torch.long),
        },
        path,
        updated_path=other_path,
        arguments={"output_hidden_states": True},
        dictionary_handler=handler,
    )


def huggingface_text(folder: Path) -> Case:
    path, other_path = save_classifiers(folder)
    handler = hf.HuggingFaceModelHandlerText(path, AutoModelForSequenceClassification)
    return Case(
        handler,
        TEXTS,
        3,
        path,
        updated_path=other_path,
        arguments={"output_hidden_states": True},
        dictionary_handler=handler,
    )


def huggingface_embedding(folder: Path) -> Case:
    path, other_path = save_encoders(folder)
    return Case(hf.HuggingFaceModelHandlerEmbedding(path), TEXTS, 3, path, updated_path=other_path)


def onnx(folder: Path) -> Case:
    path = write_model(folder / "one", arithmetic())
    product = arithmetic()
    product.graph.node[0].op_type = "Mul"
    other_path = write_model(folder / "other", product)
    return Case(
        OnnxModelHandlerNumpy(path, output_names="sum"),
        [{"a": row, "b": row} for row in ROWS],
        {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)},
        path,
        updated_path=other_path,
        arguments={"factor": 3.0},
        dictionary_handler=OnnxModelHandlerNumpy(path, output_names=["sum", "difference"]),
    )


def save_booster(path: Path, rows: Any, slope: float) -> str:
    model = xgboost.XGBRegressor(n_estimators=20, max_depth=2, min_child_weight=0)
    model.fit(rows, slope * ROWS[:, 0] + ROWS[:, 1])
    model.save_model(path)
    return str(path)


def _xgboost_case(
    folder: Path, handler_class: Any, rows: Any, examples: list[Any], invalid: Any
) -> Case:
    path, other_path = (save_booster(folder / f"{n}.json", rows, n) for n in (1, 3))

    def predict_dictionary(batch, model, inference_args=None):
        join = pd.concat if isinstance(batch[0], pd.DataFrame) else np.vstack
        tables = [row.toarray() if scipy.sparse.issparse(row) else row for row in batch]
        return {"progress": model.predict(join(tables)), "unit": "cm"}

    return Case(
        handler_class(xgboost.XGBRegressor, path),
        examples,
        invalid,
        path,
        updated_path=other_path,
        arguments={"iteration_range": (0, 5)},
        dictionary_handler=handler_class(xgboost.XGBRegressor, path, predict_dictionary),
        n_bytes=ROWS.nbytes if handler_class is XGBoostModelHandlerNumpy else None,
    )


def xgboost_numpy(folder: Path) -> Case:
    return _xgboost_case(folder, XGBoostModelHandlerNumpy, ROWS, list(ROWS), np.ones(3, np.float32))


def xgboost_pandas(folder: Path) -> Case:
    invalid = pd.DataFrame([[1.0]], columns=["depth"])
    return _xgboost_case(folder, XGBoostModelHandlerPandas, pd.concat(FRAMES), FRAMES, invalid)


def xgboost_scipy(folder: Path) -> Case:
    sparse = [scipy.sparse.csr_matrix(row[None]) for row in ROWS]
    invalid = scipy.sparse.csr_matrix(np.ones((1, 3)))
    return _xgboost_case(folder, XGBoostModelHandlerSciPy, ROWS, sparse, invalid)


def _lightgbm_case(
    folder: Path, handler_class: Any, rows: Any, examples: list[Any], invalid: Any
) -> Case:
    def train(slope):
        progress = slope * ROWS[:, 0] + ROWS[:, 1]
        model = lightgbm.LGBMRegressor(
            n_estimators=5, min_child_samples=1, min_data_in_bin=1, verbose=-1
        )
        model.fit(rows, progress).booster_.save_model(folder / f"{slope}.txt")
        return str(folder / f"{slope}.txt")

    path = train(1)
    return Case(
        handler_class(path),
        examples,
        invalid,
        path,
        updated_path=train(3),
        arguments={"num_iteration": 1, "raw_score": True},
    )


def lightgbm_numpy(folder: Path) -> Case:
    return _lightgbm_case(
        folder, LightGBMModelHandlerNumpy, ROWS, list(ROWS), np.ones(3, np.float32)
    )


def lightgbm_pandas(folder: Path) -> Case:
    invalid = pd.DataFrame([[1.0]], columns=["depth"])
    return _lightgbm_case(folder, LightGBMModelHandlerPandas, pd.concat(FRAMES), FRAMES, invalid)


def lightgbm_scipy(folder: Path) -> Case:
    sparse = [scipy.sparse.csr_matrix(row[None]) for row in ROWS]
    invalid = scipy.sparse.csr_matrix(np.ones((1, 3)))
    return _lightgbm_case(folder, LightGBMModelHandlerSciPy, ROWS, sparse, invalid)


def mlflow_rows(folder: Path) -> Case:
    """An MLflow model with a parameter in its signature."""
    pyfunc, models = map(importlib.import_module, ("mlflow.pyfunc", "mlflow.models"))

    def save(slope, returns_dictionary=False):
        class Progress(pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):
                scale = (params or {}).get("scale", 1.0)
                progress = scale * (slope * model_input["width"] + model_input["height"])
                return {"progress": progress, "unit": "cm"} if returns_dictionary else progress

        path = str(folder / f"{slope}{returns_dictionary}")
        signature = models.infer_signature(pd.concat(FRAMES), ROWS[:, 0], {"scale": 1.0})
        pyfunc.save_model(
            path, python_model=Progress(), signature=signature, pip_requirements=["pandas"]
        )
        return path

    handler_class = importlib.import_module("runinference.mlflow_inference").MLflowModelHandler
    path = save(1)
    return Case(
        handler_class(path),
        [dict(zip(NAMES, row, strict=True)) for row in ROWS.tolist()],
        {"depth": 1.0},
        path,
        updated_path=save(3),
        arguments={"scale": 2.0},
        dictionary_handler=handler_class(save(1, returns_dictionary=True)),
    )


def _tensorflow_case(
    folder: Path, extension: str, handler: str, examples: Any, invalid: Any
) -> Case:
    keras = importlib.import_module("keras")
    module = importlib.import_module("runinference.tensorflow_inference")

    def build(factor, returns_dictionary=False):
        x = keras.Input((2,), name="x")
        y = keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(factor))(x)
        y_dropout = keras.layers.Dropout(0.9, seed=0)(y)
        return keras.Model(x, {"kept": y_dropout, "all": y} if returns_dictionary else y_dropout)

    def save(file, model):
        if extension:
            model.save(folder / f"{file}{extension}")
        else:
            model.export(folder / file, verbose=False)
        return str(folder / f"{file}{extension}")

    handler_class = getattr(module, handler)
    path = save("one", build(1.0))
    return Case(
        handler_class(path),
        list(examples),
        invalid,
        path,
        updated_path=save("other", build(3.0)),
        dictionary_handler=handler_class(save("named", build(1.0, returns_dictionary=True))),
        n_bytes=ROWS.nbytes,
    )


def tensorflow_numpy(folder: Path) -> Case:
    return _tensorflow_case(folder, ".keras", "TFModelHandlerNumpy", ROWS, np.ones(3))


def tensorflow_tensor(folder: Path) -> Case:
    tf = importlib.import_module("tensorflow")
    return _tensorflow_case(folder, "", "TFModelHandlerTensor", map(tf.constant, ROWS), tf.ones(3))


class DoublingService(RemoteModelHandler):
    """A remote handler whose service is a function."""

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


class DoublingServiceWithNames(DoublingService):
    def request(self, batch, model, inference_args=None):
        return {"doubled": [model * x for x in batch]}


def remote(folder: Path) -> Case:
    return Case(
        DoublingService(),
        [1.0, 4.0, 2.0],
        "x",
        "2",
        "3",
        arguments={"plus": 1},
        dictionary_handler=DoublingServiceWithNames(),
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
        invalid=("d", case.invalid),
        dictionary_handler=KeyedModelHandler(case.dictionary_handler),
        n_bytes=None,
    )


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
    mlflow_rows,
    tensorflow_numpy,
    tensorflow_tensor,
    remote,
    openai_chat,
    openai_embeddings,
    http,
    keyed,
]


TENSORFLOW_FACTORIES = (tensorflow_numpy, tensorflow_tensor)
LIGHTGBM_FACTORIES = (lightgbm_numpy, lightgbm_pandas, lightgbm_scipy)
SERVER_FACTORIES = (openai_chat, openai_embeddings, http)
