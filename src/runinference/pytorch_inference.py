"""Handlers for PyTorch models, on tensors or on dictionaries of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.errors import ModelLoadError, OptionError
from runinference.extras import need
from runinference.handler import ModelHandler
from runinference.model_file import open_model
from runinference.options import HandlerOptions
from runinference.padding import Padding
from runinference.results import PredictionResult
from runinference.torch_calling import (
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
    needs_lengths,
    padded,
)
from runinference.torch_devices import device_named, device_of, usable

torch = need("torch", extra="torch")

__all__ = [
    "PytorchModelHandlerKeyedTensor",
    "PytorchModelHandlerTensor",
    "default_keyed_tensor_inference_fn",
    "default_tensor_inference_fn",
    "make_keyed_tensor_model_fn",
    "make_tensor_model_fn",
]

_InferenceArgs = dict[str, Any] | None


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
        if padding is not None and needs_lengths(options):
            options["batch_length_fn"] = padding.length
        super().__init__(**options)
        _check_sources(state_dict_path, model_class, torch_script_model_path)
        self._state_dict_path = state_dict_path
        self._model_class = model_class
        self._model_params = model_params or {}
        self._device = device_named(device)
        self._inference_fn = inference_fn or type(self)._default_inference_fn
        if padding is not None:
            self._inference_fn = padded(self._inference_fn, padding)
        self._torch_script_model_path = torch_script_model_path
        self._load_model_args = load_model_args or {}

    def load_model(self) -> Any:
        """The model on its device, in evaluation mode.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is of another kind, or its weights do not fit the class.
        """
        device = usable(self._device)
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
        device = device_of(model, self._device)
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
