"""Handlers are created from plain values, as in YAML and from other languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import yaml

from common import Doubler
from runinference import ModelHandler, RunInference
from runinference.errors import OptionError, UnknownOptionError
from runinference.handlers.handler_config import (
    create_handler,
    find_provider,
    get_handler_types,
    parse_output,
    to_plain,
)
from runinference.http_inference import KServeV2
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy


def test_handlers_are_found_by_the_name_of_their_class():
    assert find_provider("SklearnModelHandlerNumpy") is SklearnModelHandlerNumpy
    assert get_handler_types()["TFModelHandlerNumpy"] == "runinference.tensorflow_inference"


def test_own_handlers_are_found_by_their_full_name():
    assert isinstance(create_handler("common.Doubler", {"name": "own"}), Doubler)


def test_members_of_enumerations_are_given_by_name():
    config = {"model_uri": "model", "model_file_type": "JOBLIB", "max_batch_size": 5}
    handler = create_handler("SklearnModelHandlerNumpy", config)
    assert handler._model_file_type is ModelFileType.JOBLIB
    assert handler.batch_elements_kwargs()["max_batch_size"] == 5


@pytest.mark.parametrize("kind", ["name", "source", "file"])
def test_functions_are_given_by_name_or_source_or_file(kind, tmp_path):
    source = "def double(model, batch, inference_args=None):\n    return [2 * x for x in batch]\n"
    (tmp_path / "functions.py").write_text(source)
    function = {
        "name": {"callable": "operator.itemgetter"},
        "source": {"callable": source},
        "file": {"path": str(tmp_path / "functions.py"), "name": "double"},
    }[kind]
    config = {"model_uri": "model", "inference_fn": function}
    handler = create_handler("SklearnModelHandlerNumpy", config)
    assert callable(handler._model_inference_fn)


def test_other_objects_are_given_by_type_and_config():
    config = {
        "base_url": "http://localhost:1",
        "protocol": {"type": "KServeV2", "config": {"model_name": "digits"}},
        "backoff": {"type": "Backoff", "config": {}},
    }
    handler = create_handler("HTTPModelHandler", config)
    assert handler._protocol == KServeV2("digits")


CONFIGS = yaml.safe_load(
    """
    HTTPModelHandler: {base_url: "http://localhost", protocol: {type: KServeV2, config: {model_name: m}}}
    HuggingFaceModelHandlerEmbedding: {model_uri: model, precision: int8, ranges: [[-1, -1], [1, 1]]}
    HuggingFaceModelHandlerKeyedTensor: {model_uri: model, model_class: {callable: transformers.AutoModel}}
    HuggingFaceModelHandlerTensor: {model_uri: model, model_class: {callable: transformers.AutoModel}}
    HuggingFaceModelHandlerText: {model_uri: model, method: generate}
    HuggingFacePipelineModelHandler: {task: text-classification, device: CPU}
    LightGBMModelHandlerNumpy: {model_uri: model}
    LightGBMModelHandlerPandas: {model_uri: model}
    LightGBMModelHandlerSciPy: {model_uri: model}
    MLflowModelHandler: {model_uri: model, model_config: {temperature: 0.5}}
    OnnxModelHandlerNumpy: {model_uri: model, providers: [CPUExecutionProvider]}
    OpenAIChatModelHandler: {base_url: "http://localhost", model: m, parameters: {temperature: 0}}
    OpenAICompletionsModelHandler: {base_url: "http://localhost", model: m}
    OpenAIEmbeddingsModelHandler: {base_url: "http://localhost", model: m}
    OpenAIModelHandler: {model_name: m, request_fn: {callable: operator.itemgetter}}
    PytorchModelHandlerKeyedTensor: {torch_script_model_path: model}
    PytorchModelHandlerTensor:
      state_dict_path: model
      model_class: {callable: torch.nn.Linear}
      model_params: {in_features: 2, out_features: 1}
    SklearnModelHandlerNumpy: {model_uri: model, model_file_type: JOBLIB}
    SklearnModelHandlerPandas: {model_uri: model, max_batch_size: 10}
    TFModelHandlerNumpy: {model_uri: model}
    TFModelHandlerTensor: {model_uri: model, model_type: SAVED_MODEL}
    XGBoostModelHandler: {model_class: {callable: xgboost.Booster}, model_state: model}
    XGBoostModelHandlerDatatable: {model_class: {callable: xgboost.Booster}, model_state: model}
    XGBoostModelHandlerNumpy: {model_class: {callable: xgboost.XGBRegressor}, model_state: model}
    XGBoostModelHandlerPandas: {model_class: {callable: xgboost.XGBRegressor}, model_state: model}
    XGBoostModelHandlerSciPy: {model_class: {callable: xgboost.XGBRegressor}, model_state: model}
    """
)


@pytest.mark.parametrize("kind", get_handler_types())
def test_every_handler_is_created_from_yaml(kind):
    handler = create_handler(kind, CONFIGS[kind])
    assert isinstance(handler, ModelHandler)
    assert type(handler).__name__ == kind
    RunInference(handler, columns=["a"], output="prediction")


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("SklearnModelHandlerPanda", {}, "Did you mean 'SklearnModelHandlerPandas'"),
        ("no_such_module.Handler", {}, "no_such_module"),
        ("SklearnModelHandlerNumpy", {"model_url": "m"}, "Did you mean 'model_uri'"),
        ("SklearnModelHandlerNumpy", {}, "lacks the option 'model_uri'"),
        (
            "SklearnModelHandlerNumpy",
            {"model_uri": "m", "model_file_type": "JOBLIP"},
            "Did you mean 'JOBLIB'",
        ),
        (
            "SklearnModelHandlerNumpy",
            {"model_uri": "m", "inference_fn": {"callable": "os.no_such_function"}},
            "inference_fn is 'os.no_such_function', which can't be loaded",
        ),
    ],
)
def test_wrong_configs_raise_an_error_with_the_fix(kind, config, message):
    with pytest.raises((OptionError, UnknownOptionError), match=message):
        create_handler(kind, config)


def test_types_of_outputs_have_names():
    declared = {"label": "string", "score": {"type": "number"}}
    assert parse_output(declared) == {"label": str, "score": float}
    vector = {"vector": {"type": "array", "items": "number"}}
    assert parse_output(vector) == {"vector": Sequence[float]}
    assert parse_output("label") == "label"
    with pytest.raises(OptionError, match=r"The type of 'n' .* 'int'.*'integer'"):
        parse_output({"n": "int"})


class Inner(NamedTuple):
    name: str


class Outer(NamedTuple):
    inner: Inner
    names: list[str]


def test_rows_of_other_languages_become_dictionaries():
    plain = to_plain({"value": Outer(Inner("x"), ["a"])})
    assert plain == {"value": {"inner": {"name": "x"}, "names": ["a"]}}


def test_from_callable_takes_the_name_of_a_handler():
    transform = RunInference.from_callable(
        "SklearnModelHandlerNumpy", model_uri="model", model_file_type="JOBLIB"
    )
    assert isinstance(transform, RunInference)
    with pytest.raises(OptionError, match="Did you mean 'SklearnModelHandlerNumpy'"):
        RunInference.from_callable("SklearnModelHandlerNumpi")
