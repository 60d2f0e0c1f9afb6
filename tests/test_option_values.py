"""Options that cannot work raise `OptionError` when an object is created, in terms of the option."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import torch
import xgboost
from transformers import AutoModel

from common import Doubler, run
from runinference import (
    Backoff,
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    MaybeKeyedModelHandler,
    ModelHandler,
    ModelMetadata,
    Padding,
    RunInference,
    WatchFilePattern,
)
from runinference import huggingface_inference as hf
from runinference.errors import OptionError
from runinference.http_inference import (
    HTTPModelHandler,
    KServeV2,
    TFServing,
    TFServingColumns,
    TorchServe,
)
from runinference.lightgbm_inference import LightGBMModelHandlerNumpy
from runinference.mlflow_inference import MLflowModelHandler
from runinference.onnx_inference import OnnxModelHandlerNumpy
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
    OpenAIEmbeddingsModelHandler,
    OpenAIModelHandler,
    chat_completion_from_string,
)
from runinference.pytorch_inference import PytorchModelHandlerKeyedTensor, PytorchModelHandlerTensor
from runinference.remote.handler import RemoteModelHandler
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas
from runinference.xgboost_inference import XGBoostModelHandlerNumpy

NAN, INF = math.nan, math.inf
NOT_COUNTS = [0, -1, True, 1.5, "2", NAN, INF]
HUGE = 10**400  # too large for a float
NOT_DURATIONS = [0, -1, True, "2", NAN, INF, HUGE, 1e10]
NOT_AT_LEAST_0 = [-1, True, "2", NAN, INF, HUGE]
NOT_WAITS = [*NOT_AT_LEAST_0, 1e10]
NOT_BOOLS = ["False", 0, 1.5]
NOT_TEXTS = ["", 3, b"x"]
NOT_MAPPINGS = [["a"], "a", {1: "a"}]
NOT_FUNCTIONS = ["f", 3]
NOT_DIGESTS = ["", "abc", 64 * "g", 3]
NOT_PATHS = ["", None, 3, b"model"]


class Service(RemoteModelHandler):
    def create_client(self):
        return object()

    def request(self, batch, model, inference_args=None):
        return batch


class Limiter:
    def allow(self, *, hits_added):
        return True


class LimiterWithoutHits:
    def allow(self):
        return True


async def always(error):
    return True


#: Values by option, for options of every handler.
OF_HANDLERS: dict[str, list[Any]] = {
    **dict.fromkeys(("min_batch_size", "max_batch_size", "max_batch_bytes"), NOT_COUNTS),
    "model_copies": NOT_COUNTS,
    "max_batch_duration_secs": NOT_DURATIONS,
    "max_batch_weight": [0, *NOT_AT_LEAST_0],
    "list_output": ["rows", ["per_element"], np.array(["per_element", "x"])],
    "element_size_fn": NOT_FUNCTIONS,
    "batch_length_fn": NOT_FUNCTIONS,
    "large_model": NOT_BOOLS,
    "env_vars": [*NOT_MAPPINGS, {"A": 1}, {"": "a"}, {"A=B": "a"}, {"A": "\0"}],
}
_LENGTHS = [[], 5, "abc", b"ab", iter([1, 2]), [0], [3, 2], [2, 2], ["1"], [NAN], [True]]
#: A function that creates an object, with the invalid values of each of its options.
INVALID: dict[str, tuple[Any, dict[str, list[Any]]]] = {
    "ModelHandler": (ModelHandler, OF_HANDLERS),
    "lengths": (
        lambda **options: ModelHandler(batch_length_fn=len, **options),
        {"batch_bucket_boundaries": _LENGTHS, "max_padded_size": NOT_COUNTS},
    ),
    "remote": (
        Service,
        {
            "num_retries": [-1, True, 1.5, "2", NAN],
            "throttle_delay_secs": [*NOT_AT_LEAST_0, 1e10, 0.5],
            "overload_ratio": NOT_AT_LEAST_0,
            "window_ms": [0, -1, True, "2", NAN, INF, HUGE, 1e12],
            "bucket_ms": [0, -1, True, "2", NAN, INF, HUGE, 1e-12],
            "max_request_size": NOT_COUNTS,
            "max_concurrent_requests": NOT_COUNTS,
            "retry_filter": [*NOT_FUNCTIONS, ConnectionError, always],
            "rate_limiter": [3, object(), Limiter, LimiterWithoutHits()],
            "backoff": [3, Backoff],
            "namespace": [3],
            "large_model": [True],
            "model_copies": [1],
        },
    ),
    "http": (
        lambda base_url="http://localhost", protocol=KServeV2("m"), **options: HTTPModelHandler(
            base_url, protocol, **options
        ),
        {
            "base_url": ["", 3, "localhost:80"],
            "protocol": ["kserve", KServeV2, None],
            "timeout": NOT_DURATIONS,
            "headers": NOT_MAPPINGS,
            "key_over_http": NOT_BOOLS,
            "api_key_env": NOT_TEXTS,
        },
    ),
    "openai": (
        lambda model="m", **options: OpenAIChatModelHandler(
            "http://localhost", model, None, **options
        ),
        {
            "model": NOT_TEXTS,
            "parameters": NOT_MAPPINGS,
            "max_request_size": [*NOT_COUNTS, 2, 1.0],
        },
    ),
    **{
        handler.__name__: (
            lambda model="m", handler=handler, **options: handler(
                "http://localhost", model, None, **options
            ),
            {
                "model": NOT_TEXTS,
                "parameters": NOT_MAPPINGS,
                "max_request_size": NOT_COUNTS,
                "timeout": NOT_DURATIONS,
                "max_response_bytes": NOT_COUNTS,
            },
        )
        for handler in (OpenAICompletionsModelHandler, OpenAIEmbeddingsModelHandler)
    },
    **{
        protocol.__name__: (
            lambda model_name="m", protocol=protocol, **options: protocol(model_name, **options),
            {
                "model_name": [*NOT_TEXTS, None, "a/b", "."],
                "version": ["", "a/b", "..", True, 1.5, ["1"]],
                **options,
            },
        )
        for protocol, options in (
            (KServeV2, {"outputs": ["y", [], [""], [3], 3]}),
            (TFServing, {"signature_name": NOT_TEXTS}),
            (TFServingColumns, {"signature_name": NOT_TEXTS}),
            (TorchServe, {}),
        )
    },
    **{
        handler.__name__: (
            lambda model_uri="m", handler=handler, **options: handler(model_uri, **options),
            {
                "model_uri": NOT_PATHS,
                "inference_fn": NOT_FUNCTIONS,
                "model_file_type": ["PICKLE", None],
                "model_sha256": NOT_DIGESTS,
                "trusted_types": ["sklearn.svm.SVC", [""], 3],
            },
        )
        for handler in (SklearnModelHandlerNumpy, SklearnModelHandlerPandas)
    },
    **{
        handler.__name__: (
            lambda state_dict_path="p", model_class=torch.nn.Linear, handler=handler, **o: handler(
                state_dict_path, model_class, **o
            ),
            {
                "state_dict_path": [3, b"p"],
                "model_class": ["Linear", torch.nn.Linear(1, 1)],
                "model_params": NOT_MAPPINGS,
                "load_model_args": NOT_MAPPINGS,
                "device": ["GPUU", "", None, 1.5, "cuda:x", "cuda:-1"],
                "inference_fn": NOT_FUNCTIONS,
                "model_sha256": NOT_DIGESTS,
                "compile": ["fastest", 3, {"mod": "x"}],
                "autocast": ["float8", 16],
                "channels_last": NOT_BOOLS,
                "padding": [0, Padding],
                "torch_script_model_path": ["other"],
            },
        )
        for handler in (PytorchModelHandlerTensor, PytorchModelHandlerKeyedTensor)
    },
    "parameters without a class": (
        lambda **options: PytorchModelHandlerTensor(torch_script_model_path="p", **options),
        {"model_params": [{"n": 1}], "compile": [True]},
    ),
    "onnx": (
        lambda model_uri="m", **options: OnnxModelHandlerNumpy(model_uri, **options),
        {
            "model_uri": NOT_PATHS,
            "session_options": [object()],
            "providers": ["CPUExecutionProvider", [], ["CPU"], [()], 3],
            "provider_options": [[{}], 3, "ab", {}, [1, {}]],
            "inference_fn": NOT_FUNCTIONS,
            "output_names": ["", [], [""], 3],
        },
    ),
    "xgboost": (
        lambda model_class=xgboost.Booster, model_state="m", **options: XGBoostModelHandlerNumpy(
            model_class, model_state, **options
        ),
        {
            "model_class": ["Booster", dict, xgboost.XGBRegressor()],
            "model_state": NOT_PATHS,
            "inference_fn": NOT_FUNCTIONS,
        },
    ),
    "lightgbm": (
        lambda model_uri="m", **options: LightGBMModelHandlerNumpy(model_uri, **options),
        {"model_uri": NOT_PATHS, "inference_fn": NOT_FUNCTIONS},
    ),
    "mlflow": (
        lambda model_uri="m", **options: MLflowModelHandler(model_uri, **options),
        {
            "model_uri": NOT_PATHS,
            "model_config": NOT_MAPPINGS,
            "model_sha256": NOT_DIGESTS,
        },
    ),
    "hf pipeline": (
        lambda task="text-classification", **options: hf.HuggingFacePipelineModelHandler(
            task, **options
        ),
        {
            "task": ["", 3],
            "device": ["GPUU", 1.5],
            "inference_fn": NOT_FUNCTIONS,
            "load_pipeline_args": NOT_MAPPINGS,
        },
    ),
    "hf tensor": (
        lambda model_uri="m", model_class=AutoModel, **options: (
            hf.HuggingFaceModelHandlerKeyedTensor(model_uri, model_class, **options)
        ),
        {
            "model_uri": NOT_PATHS,
            "model_class": ["AutoModel", None],
            "framework": ["torch"],
            "device": ["GPUU", ""],
            "inference_fn": NOT_FUNCTIONS,
            "load_model_args": NOT_MAPPINGS,
            "padding": [0],
        },
    ),
    "hf embedding": (
        lambda model_uri="m", **options: hf.HuggingFaceModelHandlerEmbedding(model_uri, **options),
        {
            "pooling": ["average", 3, ["mean"], {"mean": 1}],
            "normalize": NOT_BOOLS,
            "prompt": [3],
            "tokenizer": NOT_TEXTS,
            "tokenizer_args": NOT_MAPPINGS,
            "load_tokenizer_args": NOT_MAPPINGS,
        },
    ),
    "hf text": (
        lambda model_uri="m", **options: hf.HuggingFaceModelHandlerText(model_uri, **options),
        {"method": NOT_TEXTS},
    ),
    "keyed": (
        lambda **options: KeyedModelHandler([KeyModelMapping(["a"], ModelHandler())], **options),
        dict.fromkeys(("max_models_per_worker_hint", "max_model_bytes_per_worker"), NOT_COUNTS),
    ),
    "one model with limits of several": (
        lambda **options: KeyedModelHandler(ModelHandler(), **options),
        {"max_models_per_worker_hint": [1], "max_model_bytes_per_worker": [1]},
    ),
    "padding with a value for its mask": (
        lambda value: Padding(value=value, mask="real"),
        {"value": [{"ids": 0, "real": 1}]},
    ),
    "key model mapping": (
        lambda keys: KeyedModelHandler([KeyModelMapping(keys, ModelHandler())]),
        {
            "keys": ["abc", 3, None, [], b"ab", bytearray(b"ab"), np.array(5), np.eye(2)],
        },
    ),
    "padding": (
        Padding,
        {
            "value": ["0", {}, {"a": "0"}, None],
            "mask": NOT_TEXTS,
            "dim": [-1, True, 1.5, "0"],
            "side": ["top", None, ["left"], np.array(["left", "right"])],
            "unpad": NOT_BOOLS,
        },
    ),
    "backoff": (
        Backoff,
        {
            **dict.fromkeys(("initial_secs", "max_secs", "max_retry_after_secs"), NOT_WAITS),
            "multiplier": [0.5, *NOT_AT_LEAST_0],
            "jitter": [1.5, *NOT_AT_LEAST_0],
        },
    ),
    "run inference": (
        lambda model_handler=ModelHandler(), **options: RunInference(model_handler, **options),
        {
            "model_handler": [ModelHandler, "model.pkl", None, torch.nn.Linear(1, 1), print],
            "clock": [3, None],
            "inference_args": NOT_MAPPINGS,
            "metrics_namespace": [3],
            "model_metadata_pcoll": [
                "model.pkl",
                [1],
                5,
                False,
                beam.Pipeline(),
                ModelMetadata("m", "m"),
                KeyModelPathMapping(["a"], "m"),
            ],
            "watch_model_pattern": NOT_TEXTS,
            "model_identifier": NOT_TEXTS,
            "use_model_manager": NOT_BOOLS,
            "model_manager_args": [{"max_models": 1}],
            "monitoring_transform": [print, "log"],
            "interval": [5],
            "stop_timestamp": [5],
        },
    ),
    "watching": (
        lambda **options: RunInference(ModelHandler(), watch_model_pattern="m*", **options),
        {"interval": NOT_DURATIONS, "stop_timestamp": ["soon", NAN]},
    ),
    "model manager": (
        lambda **limits: RunInference(
            ModelHandler(), use_model_manager=True, model_manager_args=limits
        ),
        {
            "max_models": NOT_COUNTS,
            "max_model_bytes": NOT_COUNTS,
            "wait_timeout_seconds": NOT_WAITS,
        },
    ),
    "model manager arguments": (
        lambda **options: RunInference(ModelHandler(), use_model_manager=True, **options),
        {"model_manager_args": NOT_MAPPINGS},
    ),
    "exception handling": (
        lambda **options: RunInference(ModelHandler()).with_exception_handling(**options),
        {
            "exc_class": ["ValueError", ValueError("x"), (), (ValueError, "x"), int, None],
            "use_subprocess": NOT_BOOLS,
            "threshold": [1.5, *NOT_AT_LEAST_0],
            "timeout": NOT_DURATIONS,
        },
    ),
    "openai request function": (
        lambda **options: OpenAIModelHandler(
            **{"model_name": "m", "request_fn": chat_completion_from_string, **options}
        ),
        {
            "model_name": NOT_TEXTS,
            "request_fn": [*NOT_FUNCTIONS, ["f"]],
            "api_key": [3, ["key"], b"key"],
            "organization": NOT_TEXTS,
            "project": NOT_TEXTS,
            "client_args": [*NOT_MAPPINGS, 3],
        },
    ),
    "watch file pattern": (
        lambda file_pattern="m*", **options: WatchFilePattern(file_pattern, **options),
        {
            "file_pattern": NOT_TEXTS,
            "interval": NOT_DURATIONS,
            "stop_timestamp": ["soon", NAN, None],
        },
    ),
}


@pytest.mark.parametrize(
    ("create", "option", "values"),
    [
        pytest.param(create, option, values, id=f"{name}-{option}")
        for name, (create, options) in INVALID.items()
        for option, values in options.items()
    ],
)
def test_invalid_values_raise_an_error_that_names_the_option(create, option, values):
    for value in values:
        with pytest.raises(OptionError) as raised:
            create(**{option: value})
        assert option.split("_")[0] in str(raised.value), value


class Overridden(Doubler):
    """A handler whose methods return other values than the options of the constructor."""

    def __init__(self, limits=None, copies=1):
        super().__init__()
        self.limits, self.copies = limits or {}, copies

    def batch_elements_kwargs(self):
        return self.limits

    def model_copies(self):
        return self.copies


@pytest.mark.parametrize(
    "wrap",
    [
        lambda h: h,
        KeyedModelHandler,
        lambda h: KeyedModelHandler([KeyModelMapping(["a"], h)]),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {"limits": {"max_batch_size": 0}},
        {"limits": {"min_batch_size": "8"}},
        {"limits": {"min_batch_size": 8, "max_batch_size": 4}},
        {"limits": {"max_batch_duration_secs": NAN}},
        {"limits": {"length_fn": len, "bucket_boundaries": [2, 1]}},
        {"limits": {"element_size_fn": 3}},
        {"limits": 5},
        {"copies": 0},
        {"copies": "2"},
    ],
    ids=str,
)
def test_values_of_overridden_methods_are_checked(wrap, options):
    with pytest.raises(OptionError):
        RunInference(wrap(Overridden(**options)))


WRONG_OBJECTS = [Doubler, "model.pkl", None, 3, torch.nn.Linear(1, 1), beam.Map(print)]


@pytest.mark.parametrize(
    "wrap",
    [
        RunInference,
        KeyedModelHandler,
        MaybeKeyedModelHandler,
        lambda handler: KeyedModelHandler([KeyModelMapping(["a"], handler)]),
    ],
)
@pytest.mark.parametrize("wrong", WRONG_OBJECTS, ids=lambda wrong: type(wrong).__name__)
def test_objects_that_are_not_handlers_are_rejected(wrap, wrong):
    with pytest.raises(
        OptionError, match=r"class Doubler. To fix this|takes a model handler|without"
    ):
        wrap(wrong)


@pytest.mark.parametrize("keys", ["abc", 3, None, [], b"ab", [["a"]]])
def test_mappings_without_a_list_of_keys_are_rejected(keys):
    with pytest.raises(OptionError, match="key"):
        KeyedModelHandler([KeyModelMapping(keys, ModelHandler())])


@pytest.mark.parametrize("method", ["with_preprocess_fn", "with_postprocess_fn"])
@pytest.mark.parametrize("handler", [ModelHandler(), KeyedModelHandler(ModelHandler())])
def test_functions_must_be_callable(method, handler):
    with pytest.raises(OptionError, match=method):
        getattr(handler, method)("not a function")


def test_paths_can_be_path_objects(tmp_path):
    handlers = [
        SklearnModelHandlerNumpy(tmp_path),
        MLflowModelHandler(tmp_path),
        OnnxModelHandlerNumpy(tmp_path),
        LightGBMModelHandlerNumpy(tmp_path),
        XGBoostModelHandlerNumpy(xgboost.Booster, tmp_path),
        hf.HuggingFaceModelHandlerEmbedding(tmp_path),
    ]
    for handler in handlers:
        assert str(tmp_path) in map(str, vars(handler).values())
        assert not any(isinstance(value, Path) for value in vars(handler).values())


def test_a_request_function_need_not_be_hashable():
    @dataclasses.dataclass
    class Ask:
        n: int

        def __call__(self, model_name, batch, client, inference_args):
            return batch

    assert OpenAIModelHandler("m", Ask(1)).max_request_size is None
    assert OpenAIModelHandler("m", chat_completion_from_string).max_request_size == 1


def test_messages_do_not_show_values_that_can_be_secret():
    for options in ({"env_vars": ["hunter2"]}, {"env_vars": {"KEY": b"hunter2"}}):
        with pytest.raises(OptionError) as raised:
            ModelHandler(**options)
        assert "hunter2" not in str(raised.value)


def _mapped(**options: Any) -> KeyModelMapping:
    return KeyModelMapping([str(options)], ModelHandler(**options))


class IgnoresUpdates(Service):
    """A handler that doesn't define update_model_path."""


def _refresh(handler: Any) -> Any:
    transform = RunInference(handler, watch_model_pattern="models/*")
    return [1] | transform


#: Options without any effect, because of another option or method.
WITHOUT_EFFECT = {
    "copies that are not shared": lambda: RunInference(Overridden(copies=2)),
    "shared model in a subprocess": lambda: RunInference(
        ModelHandler(large_model=True)
    ).with_exception_handling(use_subprocess=True),
    "copies in a subprocess": lambda: RunInference(
        KeyedModelHandler(ModelHandler(model_copies=2))
    ).with_exception_handling(use_subprocess=True),
    "limits of a handler with a model manager": lambda: RunInference(
        KeyedModelHandler([_mapped()], max_models_per_worker_hint=1), use_model_manager=True
    ),
    "updates that the handler ignores": lambda: _refresh(IgnoresUpdates()),
    "updates that a wrapped handler ignores": lambda: _refresh(KeyedModelHandler(ModelHandler())),
    "updates that a mapped handler ignores": lambda: _refresh(KeyedModelHandler([_mapped()])),
    "backoff without retries": lambda: Service(num_retries=0, backoff=Backoff()),
    "arguments for loading safetensors": lambda: PytorchModelHandlerTensor(
        "m.safetensors", torch.nn.Linear, load_model_args={"weights_only": False}
    ),
    "one variable with two values": lambda: KeyedModelHandler(
        [_mapped(env_vars={"A": "1"}), _mapped(env_vars={"A": "2"})]
    ),
}


@pytest.mark.parametrize("create", WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_options_without_effect_raise_an_error(create):
    with pytest.raises(OptionError, match="To fix this"):
        create()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_TOKEN", "abc"),
        ("OPENAI_API_KEY", "abc"),
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("PGPASSWORD", "abc"),
        ("api_key", "abc"),
        ("AUTHORIZATION", "abc"),
        ("DB_PASS", "abc"),
        ("APP_SECRETS", "abc"),
        ("ENDPOINT", "sk-hunter2hunter2"),
        ("GH", "github_pat_11ABCDEFG0123456789"),
        ("CI", "glpat-abcdefghijklmnop"),
        ("SSH", "-----BEGIN RSA PRIVATE KEY-----"),
        ("HTTPS_PROXY", "http://user:hunter2@proxy:80"),
    ],
)
def test_environment_variables_with_secrets_are_rejected_without_showing_them(variable, value):
    with pytest.raises(OptionError, match=variable) as raised:
        ModelHandler(env_vars={variable: value})
    assert value not in str(raised.value)


def test_the_variable_of_a_key_is_rejected_whatever_its_name_is():
    with pytest.raises(OptionError, match="'WHATEVER', which looks like a secret"):
        HTTPModelHandler(
            "https://m.example", TFServing("m"), "WHATEVER", env_vars={"WHATEVER": "hunter2"}
        )


@pytest.mark.parametrize(
    "variable",
    ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "AWS_ACCESS_KEY_ID", "KERAS_BACKEND", "HF_TOKEN_PATH"],
)
def test_other_environment_variables_are_accepted(variable):
    assert ModelHandler(env_vars={variable: "1", "NO_PROXY": "http://proxy:80"})


@pytest.mark.parametrize("n_bytes", [None, "8"])
def test_a_size_that_is_not_a_number_names_the_method(n_bytes):
    class Sized(Doubler):
        def get_num_bytes(self, batch):
            return n_bytes

    with pytest.raises(OptionError, match="get_num_bytes"):
        run([1.0], RunInference(Sized()))
