"""Handlers for PyTorch models, on tensors or on dictionaries of tensors."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.errors import BatchShapeError, ModelLoadError, OptionError, nearest
from runinference.extras import need
from runinference.handler import ModelHandler
from runinference.model_file import open_model
from runinference.options import HandlerOptions
from runinference.padding import NoPadding, Padding
from runinference.results import PredictionResult
from runinference.splitting import to_results
from runinference.stacking import refuse_keyed, stacked
from runinference.structure import known_of

torch = need("torch", extra="torch")

__all__ = [
    "PytorchModelHandlerKeyedTensor",
    "PytorchModelHandlerTensor",
    "default_keyed_tensor_inference_fn",
    "default_tensor_inference_fn",
    "make_keyed_tensor_model_fn",
    "make_tensor_model_fn",
]

_LOGGER = logging.getLogger(__name__)
_InferenceArgs = dict[str, Any] | None


def default_tensor_inference_fn(
    batch: Sequence[Any],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Stacks tensors of one shape along a new first dimension, and calls the model with them.

    Raises:
        BatchShapeError: A tensor has another shape than the others.
        ResultMismatchError: The output does not have one entry for each tensor.
    """
    return _infer(None, batch, model, device, inference_args, model_id)


def default_keyed_tensor_inference_fn(
    batch: Sequence[Mapping[str, Any]],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Stacks the tensors of each key, and calls the model with the keys as keywords.

    Raises:
        BatchShapeError: A tensor has another shape than the others, or an example has other keys.
        ResultMismatchError: The output does not have one entry for each example.
    """
    return _infer_keyed(None, batch, model, device, inference_args, model_id)


def make_tensor_model_fn(model_fn: str) -> Callable[..., Iterable[PredictionResult]]:
    """An ``inference_fn`` for tensors that calls the model's method ``model_fn``, such as ``"generate"``."""
    return functools.partial(_infer, model_fn)


def make_keyed_tensor_model_fn(model_fn: str) -> Callable[..., Iterable[PredictionResult]]:
    """An ``inference_fn`` for dictionaries of tensors that calls the model's method ``model_fn``."""
    return functools.partial(_infer_keyed, model_fn)


class _PytorchModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """What both handlers have in common: the file, the device, and how the model is loaded."""

    _default_inference_fn: Callable[..., Iterable[PredictionResult]]

    def __init__(
        self,
        state_dict_path: str | None = None,
        model_class: Callable[..., Any] | None = None,
        model_params: dict[str, Any] | None = None,
        device: Any = "CPU",
        *,
        inference_fn: Callable[..., Iterable[PredictionResult]] | None = None,
        torch_script_model_path: str | None = None,
        load_model_args: dict[str, Any] | None = None,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the weights and the class they belong to, or a TorchScript file.

        Args:
            state_dict_path: The path of the weights, on any file system that Beam reads: a state dictionary
                that ``torch.save`` wrote, or a file that ends in ``.safetensors``. It is loaded with
                ``weights_only=True`` and runs no code.
            model_class: Makes the module that the weights belong to: a class or a function.
            model_params: Keywords for ``model_class``.
            device: ``"CPU"``, ``"GPU"``, or any device of PyTorch, such as ``"cuda:1"`` or ``"mps"``. Where
                there is no such GPU, the model runs on the CPU, with a warning.
            inference_fn: Calls the model, in place of the default; gets the examples, the model, its device,
                the inference arguments and the model's id, and returns the results.
            torch_script_model_path: The path of a TorchScript file, in place of the three above.
            load_model_args: Keywords for ``torch.load`` or ``torch.jit.load``.
            padding: How tensors of several lengths become one batch; without it they must have one shape. It
                also gives the lengths for ``max_padded_size`` and ``batch_bucket_boundaries``, unless there is
                a ``batch_length_fn``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Weights without a class, a class without weights, both kinds of model, or an unknown
                device; padding together with an ``inference_fn`` of your own.
        """
        if padding is not None and _needs_lengths(options):
            options["batch_length_fn"] = padding.length
        super().__init__(**options)
        _check_sources(state_dict_path, model_class, torch_script_model_path)
        self._state_dict_path = state_dict_path
        self._model_class = model_class
        self._model_params = model_params or {}
        self._device = _device(device)
        self._inference_fn = inference_fn or type(self)._default_inference_fn
        if padding is not None:
            self._inference_fn = _padded(self._inference_fn, padding)
        self._torch_script_model_path = torch_script_model_path
        self._load_model_args = load_model_args or {}

    def load_model(self) -> Any:
        """The model on its device, in evaluation mode.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is of another kind, or its weights do not fit the class.
        """
        device = _usable(self._device)
        if self._torch_script_model_path:
            model = _read_torch_script(self._torch_script_model_path, device, self._load_model_args)
        else:
            model = self._build()
        return model.to(device).eval()

    def update_model_path(self, model_path: str | None = None) -> None:
        if self._torch_script_model_path:
            self._torch_script_model_path = model_path or self._torch_script_model_path
        else:
            self._state_dict_path = model_path or self._state_dict_path

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: _InferenceArgs = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are keywords of the model's call."""
        model_id = self._torch_script_model_path or self._state_dict_path
        device = _device_of(model, self._device)
        return self._inference_fn(batch, model, device, inference_args or {}, model_id)

    def get_metrics_namespace(self) -> str:
        return "BeamML_PyTorch"

    def _build(self) -> Any:
        path, make = self._state_dict_path, self._model_class
        if make is None or path is None:
            raise OptionError(
                f"{type(self).__name__} has no model: give state_dict_path and model_class, or "
                "torch_script_model_path."
            )
        weights = _read_weights(path, self._load_model_args)
        try:
            model = make(**self._model_params)
        except TypeError as error:
            raise ModelLoadError(
                f"{_name_of(make)} cannot be made with model_params={self._model_params!r}: {error}."
            ) from error
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise _does_not_fit(path, make, weights, model.state_dict()) from error
        return model.requires_grad_(False)


class PytorchModelHandlerTensor(_PytorchModelHandler):
    """Runs a PyTorch model on tensors of one shape, which become one batch along a new first dimension.

    With ``padding``, on tensors that differ in one dimension.

    >>> from runinference import samples
    >>> from torchvision.models import shufflenet_v2_x0_5
    >>> handler = PytorchModelHandlerTensor(
    ...     state_dict_path=samples.digits_shufflenet(),
    ...     model_class=shufflenet_v2_x0_5,
    ...     model_params={"num_classes": 10},
    ... )
    >>> images, labels = samples.held_out_digits()
    >>> [result] = handler.predict(samples.digit_tensors(images[:1]))
    >>> result.inference.shape
    torch.Size([10])
    """

    _default_inference_fn = staticmethod(default_tensor_inference_fn)


class PytorchModelHandlerKeyedTensor(_PytorchModelHandler):
    """Runs a PyTorch model on dictionaries of tensors, whose keys are the keywords of the model's call.

    Each key's tensors must have one shape; they become one batch along a new first dimension. With ``padding``
    they may differ in one dimension.
    """

    _default_inference_fn = staticmethod(default_keyed_tensor_inference_fn)


def _infer(
    method: str | None,
    batch: Sequence[Any],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
    padding: Padding | NoPadding = NoPadding(),
) -> Iterable[PredictionResult]:
    def call(examples: Sequence[Any]) -> Any:
        inputs = padding.join(examples, _stack).to(device)
        masks = _move(padding.masks(examples), device)
        with torch.inference_mode():
            return _method(model, method)(inputs, **masks, **(inference_args or {}))

    return to_results(batch, padding.rows(batch, call, known_of(model, method)), model_id)


def _infer_keyed(
    method: str | None,
    batch: Sequence[Mapping[str, Any]],
    model: Any,
    device: Any,
    inference_args: _InferenceArgs = None,
    model_id: str | None = None,
    padding: Padding | NoPadding = NoPadding(),
) -> Iterable[PredictionResult]:
    def call(examples: Sequence[Mapping[str, Any]]) -> Any:
        inputs = _move(padding.join_keys(examples, _stack), device)
        with torch.inference_mode():
            return _method(model, method)(**inputs, **(inference_args or {}))

    _check_keys(batch)
    return to_results(batch, padding.rows(batch, call, known_of(model, method)), model_id)


def _padded(inference_fn: Any, padding: Padding) -> Callable[..., Iterable[PredictionResult]]:
    """The same function of ours, with padding."""
    inference_fn = _WITHOUT_METHOD.get(inference_fn, inference_fn)
    function = getattr(inference_fn, "func", None)
    if function is _infer and isinstance(padding.value, Mapping):
        raise OptionError(
            "The value of Padding must be a number here: these examples are tensors, which have no keys. "
            "Dictionaries of tensors are for PytorchModelHandlerKeyedTensor."
        )
    if function not in (_infer, _infer_keyed):
        raise OptionError(
            "padding has no effect on an inference_fn of your own, which gets the examples as they came. Leave "
            "padding out, or take make_tensor_model_fn or make_keyed_tensor_model_fn."
        )
    return functools.partial(inference_fn, padding=padding)


_WITHOUT_METHOD = {
    default_tensor_inference_fn: functools.partial(_infer, None),
    default_keyed_tensor_inference_fn: functools.partial(_infer_keyed, None),
}


def _needs_lengths(options: Mapping[str, Any]) -> bool:
    """Whether an option stands there that needs lengths, and none that gives them."""
    if options.get("batch_length_fn") is not None:
        return False
    return any(options.get(n) is not None for n in ("max_padded_size", "batch_bucket_boundaries"))


def _move(tensors: Mapping[str, Any], device: Any) -> dict[str, Any]:
    return {key: torch.as_tensor(tensor).to(device) for key, tensor in tensors.items()}


def _stack(
    batch: Sequence[Any], what: str = "the batch", cure: Callable[[int], str] | None = None
) -> Any:
    for index, example in enumerate(batch):
        if not isinstance(example, torch.Tensor):
            refuse_keyed(batch)
            raise BatchShapeError(
                f"Element {index} of {what} is of type {type(example).__name__}, not a torch.Tensor. Convert it "
                "before, for example with_preprocess_fn(torch.as_tensor)."
            )
    return stacked(torch.stack, batch, what, cure or _pad_them)


def _pad_them(dim: int) -> str:
    return f"pad them with padding=Padding({f'dim={dim}' if dim else ''})"


def _check_keys(batch: Sequence[Mapping[str, Any]]) -> None:
    keys = batch[0].keys()
    for index, example in enumerate(batch):
        if example.keys() != keys:
            raise BatchShapeError(
                f"Element {index} of the batch has the keys {sorted(example)}, and element 0 has {sorted(keys)}. "
                "Give all elements the same keys."
            )


def _method(model: Any, name: str | None) -> Callable[..., Any]:
    if name is None:
        return model  # type: ignore[no-any-return]
    if not hasattr(model, name):
        near = nearest(name, (n for n in dir(model) if not n.startswith("_")))
        raise AttributeError(f"The model, a {type(model).__name__}, has no method {name!r}.{near}")
    return getattr(model, name)  # type: ignore[no-any-return]


def _check_sources(path: str | None, make: Any, script: str | None) -> None:
    if script and (path or make):
        raise OptionError(
            "torch_script_model_path holds a whole model: give it alone, or state_dict_path and model_class."
        )
    if path and make is None:
        raise OptionError(
            "state_dict_path needs model_class: the file holds weights, and the class makes the module that "
            "they belong to. For a TorchScript file, which needs no class, use torch_script_model_path."
        )
    if make is not None and not path:
        raise OptionError("model_class needs state_dict_path, the file of its weights.")


def _device(name: Any) -> Any:
    if isinstance(name, torch.device):
        return name
    try:
        return torch.device({"CPU": "cpu", "GPU": "cuda"}.get(name, name))
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device must be 'CPU', 'GPU' or a device of PyTorch such as 'cuda:1', and is {name!r}."
        ) from error


@functools.cache
def _usable(device: Any) -> Any:
    """The device, or the CPU where there is no such GPU."""
    if device.type != "cuda":
        return device
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        _LOGGER.warning(
            "The model runs on the CPU: the device %s cannot be used (%s).", device, error
        )
        return torch.device("cpu")
    return device


def _device_of(model: Any, device: Any) -> Any:
    if (
        isinstance(model, torch.nn.Module)
        and (weight := next(model.parameters(), None)) is not None
    ):
        return weight.device
    return _usable(device)


def _read_weights(path: str, load_model_args: dict[str, Any]) -> dict[str, Any]:
    with open_model(path, "state_dict_path") as file:
        if path.endswith(".safetensors"):
            return _read_safetensors(file.read(), path)
        try:
            weights = torch.load(
                file, **{"map_location": "cpu", "weights_only": True, **load_model_args}
            )
        except Exception as error:
            raise _not_weights(path, error) from error
    if not isinstance(weights, Mapping):
        raise ModelLoadError(
            f"The file {path!r} holds a {type(weights).__name__}, not a state dictionary. Save the weights alone: "
            "torch.save(model.state_dict(), path)."
        )
    return dict(weights)


def _read_safetensors(data: bytes, path: str) -> dict[str, Any]:
    try:
        weights: dict[str, Any] = need("safetensors.torch", extra="torch").load(data)
    except ImportError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"The file {path!r} ends in .safetensors and cannot be read as that ({error}). It may be truncated "
            "or of another kind: give a file of torch.save another ending."
        ) from error
    return weights


def _read_torch_script(path: str, device: Any, load_model_args: dict[str, Any]) -> Any:
    with open_model(path, "torch_script_model_path") as file:
        try:
            return torch.jit.load(file, **{"map_location": device, **load_model_args})
        except (RuntimeError, ValueError, EOFError) as error:
            raise ModelLoadError(
                f"The file {path!r} cannot be loaded as TorchScript ({_first_line(error)}). If it holds weights, "
                "give it as state_dict_path together with model_class; otherwise it may be truncated."
            ) from error


def _not_weights(path: str, error: Exception) -> ModelLoadError:
    said = str(error)
    if "TorchScript" in said:
        cure = "It is a TorchScript file: give it as torch_script_model_path, without model_class."
    elif "GLOBAL" in said or "Unsupported class" in said:
        cure = (
            "It holds more than weights, and loading it could run code. Save the weights alone: "
            "torch.save(model.state_dict(), path). If you trust the file: "
            "load_model_args={'weights_only': False}."
        )
    else:
        cure = "It may be truncated, or of another kind than torch.save(model.state_dict(), path) writes."
    return ModelLoadError(
        f"The file {path!r} (state_dict_path) cannot be loaded as weights ({_first_line(error)}). {cure}"
    )


def _does_not_fit(
    path: str, make: Any, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> ModelLoadError:
    name = _name_of(make)
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    shapes = [
        f"{key} is {_shape(found[key])} in the file and {_shape(wanted[key])} in the model"
        for key in wanted
        if key in found and _shape(found[key]) != _shape(wanted[key])
    ]
    parts = [
        f"{what}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (
            ("missing from the file", missing),
            ("not in the model", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if len(unexpected) == len(found) and any(key.startswith("module.") for key in unexpected):
        cure = "The weights were saved from DataParallel: save model.module.state_dict()."
    elif inner := [key for key, value in found.items() if isinstance(value, Mapping)]:
        cure = f"The file is a checkpoint with several parts: save the weights alone, for example of {inner[0]!r}."
    else:
        cure = "Check model_class and model_params: they must make the model that the weights were saved from."
    return ModelLoadError(f"The weights in {path!r} do not fit {name}: {'; '.join(parts)}. {cure}")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__


def _first_line(error: Exception) -> str:
    """The first sentence of what PyTorch says, without the codes that colour it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    return re.split(r"(?<=\w)\.\s|\n", plain, maxsplit=1)[0][:200]


def _name_of(make: Any) -> str:
    return str(getattr(make, "__name__", repr(make)))
