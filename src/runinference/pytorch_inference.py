"""Handlers for PyTorch models that take tensors or dictionaries of tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self, Unpack

from runinference.checks import (
    check_bool,
    check_callable,
    check_mapping,
    check_path,
    check_sha256,
)
from runinference.collate.padding import Padding
from runinference.collate.row_inputs import RowInput
from runinference.errors import OptionError
from runinference.extras import need
from runinference.frameworks.torch.calling import (
    KeyedTensorInferenceFn,
    TensorInferenceFn,
    check_no_padding,
    check_padding,
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    keeps_examples,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
    with_length_fn,
    with_list_output,
    with_padding,
    without_splitting,
)
from runinference.frameworks.torch.compile import (
    compile_model,
    parse_compile_option,
    uses_cuda_graphs,
)
from runinference.frameworks.torch.device_copies import call_copy, load_on_devices
from runinference.frameworks.torch.devices import (
    autocast,
    find_devices,
    get_model_device,
    parse_autocast_dtype,
    parse_devices,
    use_channels_last,
)
from runinference.frameworks.torch.exported_program import load_exported_program
from runinference.frameworks.torch.loading import load_torch_script, load_weights
from runinference.frameworks.torch.row_inputs import TensorInput
from runinference.frameworks.torch.training_mode import check_evaluation_mode
from runinference.handlers.compute_turn import CallOverlap
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.handlers.tunable import Tunable, TunableOption
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import torch
else:
    torch = need("torch", extra="torch")

__all__ = [
    "KeyedTensorInferenceFn",
    "PytorchModelHandlerKeyedTensor",
    "PytorchModelHandlerTensor",
    "TensorInferenceFn",
    "default_keyed_tensor_inference_fn",
    "default_tensor_inference_fn",
    "make_keyed_tensor_model_fn",
    "make_tensor_model_fn",
]


class _PytorchModelHandler(Tunable, ModelHandler[Any, PredictionResult, Any]):
    """The base of the PyTorch handlers: options, loading and calling."""

    _metrics_namespace = "BeamML_PyTorch"
    _supports_dynamic_batching = True
    _default_inference_fn: Callable[..., Iterable[PredictionResult]]
    _keeps_examples = True

    @accepts(HandlerOptions)
    def __init__(
        self,
        state_dict_path: str | os.PathLike[str] | None = None,
        model_class: Callable[..., torch.nn.Module] | None = None,
        model_params: dict[str, Any] | None = None,
        device: str | torch.device | Sequence[str | torch.device] = "CPU",
        *,
        inference_fn: TensorInferenceFn | KeyedTensorInferenceFn | None = None,
        torch_script_model_path: str | os.PathLike[str] | None = None,
        load_model_args: dict[str, Any] | None = None,
        torch_export_model_path: str | os.PathLike[str] | None = None,
        model_sha256: str | None = None,
        compile: bool | str | dict[str, Any] = False,
        autocast: Literal["bfloat16", "float16"] | torch.dtype | None = None,
        channels_last: bool = False,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Create a handler from weights and a class, or from a file that contains a complete model.

        Args:
            state_dict_path: The path of the weights, on any file system that Beam supports: a state dictionary
                that ``torch.save`` wrote, or a file whose name ends in ``.safetensors``. Loading it with the
                default ``weights_only=True`` runs no code.
            model_class: The class or function that creates the module for the weights.
            model_params: Keyword arguments for ``model_class``.
            device: ``"CPU"``, ``"GPU"``, or any PyTorch device, such as ``"cuda:1"`` or ``"mps"``. If a worker
                has no such device, the model runs on its CPU, with a warning. With a list, such as
                ``["cuda:0", "cuda:1"]``, each device has a copy of the model, and batches are spread over the
                devices that a worker has. Results are moved to the CPU.
            inference_fn: A function ``(batch, model, device, inference_args, model_id)`` that calls the model and
                returns one result per example. By default, ``default_tensor_inference_fn`` or
                ``default_keyed_tensor_inference_fn``.
            torch_script_model_path: The path of a TorchScript file, instead of weights and a class.
            load_model_args: Keyword arguments for ``torch.load``, ``torch.jit.load`` or ``torch.export.load``.
            torch_export_model_path: The path of a file that ``torch.export.save`` wrote, instead of weights and
                a class. Loading it may run code. Load only files that you trust.
            model_sha256: The expected SHA-256 digest of the model file, in hexadecimal. It is checked before the
                file is loaded.
            compile: Whether to compile the model with ``torch.compile``: True, a mode such as ``"max-autotune"``,
                or a dictionary of keyword arguments. The model is compiled when it is first called.
            autocast: The dtype for mixed precision, ``"bfloat16"`` or ``"float16"``. None for full precision. The
                default inference functions convert results back to float32.
            channels_last: Whether an image model computes in the channels-last memory format, which makes
                convolutions faster. Elements may have any memory format.
            padding: How to pad tensors of different lengths. If None, all tensors must have the same shape. It
                also provides the lengths for ``max_padded_size`` and ``batch_bucket_boundaries``, unless you
                pass a ``batch_length_fn``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Weights without a class, a class without weights, more than one kind of model, an
                unknown device, mode or precision, ``padding`` with your own ``inference_fn``, or ``compile``
                with TorchScript.
        """
        check_padding(padding)
        super().__init__(**with_length_fn(options, padding.length if padding else None))
        _check_sources(
            state_dict_path, model_class, torch_script_model_path, torch_export_model_path
        )
        _check_types(model_params, load_model_args, inference_fn, model_sha256)
        check_bool("channels_last", channels_last)
        if load_model_args and str(state_dict_path).endswith(".safetensors"):
            raise OptionError(
                "load_model_args are for torch.load, which doesn't load safetensors files. To fix this, leave "
                "load_model_args out."
            )
        if model_params is not None and model_class is None:
            raise OptionError("model_params are for model_class. To fix this, leave them out.")
        self._state_dict_path = _check_optional_path("state_dict_path", state_dict_path)
        self._model_class = model_class
        self._model_params = model_params or {}
        self._devices = parse_devices(device)
        self._inference_fn = inference_fn or type(self)._default_inference_fn
        self._padding = padding
        if padding is not None:
            self._inference_fn = with_padding(self._inference_fn, padding)
        self._torch_script_model_path = _check_optional_path(
            "torch_script_model_path", torch_script_model_path
        )
        self._load_model_args = load_model_args or {}
        self._torch_export_model_path = _check_optional_path(
            "torch_export_model_path", torch_export_model_path
        )
        self._model_sha256 = model_sha256
        self._compile = parse_compile_option(compile)
        self._autocast = parse_autocast_dtype(autocast)
        self._channels_last = channels_last
        if torch_script_model_path and self._compile is not None:
            raise OptionError(
                "torch.compile does not compile TorchScript. To fix this, leave compile out, or pass the weights "
                "as state_dict_path and model_class, or a torch.export program."
            )

    _is_keyed = False  # whether examples are dictionaries of tensors
    # Defaults for subclasses that don't call the constructor.
    _padding: Padding | None = None
    _torch_export_model_path: str | None = None
    _model_sha256: str | None = None
    _compile: dict[str, Any] | None = None
    _autocast: torch.dtype | None = None
    _channels_last = False

    def load_model(self) -> Any:
        """Load the model in evaluation mode, on its device or on each of its devices.

        Raises:
            ModelNotFoundError: The file doesn't exist.
            ModelLoadError: The file has another format or digest, its weights don't fit the class, or this
                machine can't compile the model.
        """
        return load_on_devices(find_devices(self._devices), self._load_on)

    def _load_on(self, device: Any) -> Any:
        model = self._load_file(device).to(device)
        if self.batch_elements_kwargs().get("max_batch_size") != 1:
            check_evaluation_mode(getattr(model, "program", model), repr(self._model_id()))
        if self._channels_last:
            model = use_channels_last(model)
        if self._compile is not None:
            compile_model(model, self._compile, device)
        return model

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path and self._torch_script_model_path:
            self._torch_script_model_path = model_path
        elif model_path and self._torch_export_model_path:
            self._torch_export_model_path = model_path
        elif model_path:
            self._state_dict_path = model_path

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Call the model on a batch. ``inference_args`` are keyword arguments for the call."""
        call = self._inference_fn
        if self.gives_whole_results():
            call = without_splitting(call, self.results_of)
        else:
            call = with_list_output(call, self._list_output)

        def run(model: Any) -> Iterable[PredictionResult]:
            device = get_model_device(model, self._devices[0])
            with autocast(device, self._autocast):
                return call(batch, model, device, inference_args or {}, self._model_id())

        return call_copy(model, run, retry=keeps_examples(self._inference_fn))

    def may_modify_examples(self) -> bool:
        return not keeps_examples(self._inference_fn) or super().may_modify_examples()

    def call_overlap(self) -> CallOverlap:
        is_overridden = type(self).run_inference is not _PytorchModelHandler.run_inference
        uses_turn = keeps_examples(self._inference_fn) and not is_overridden
        on_gpu = any(device.type == "cuda" for device in self._devices)
        if on_gpu and self._compile is not None and uses_cuda_graphs(self._compile):
            return CallOverlap(max_calls=1)
        return CallOverlap(max_calls=1 + len(self._devices), uses_turn=uses_turn)

    def default_length_fn(self) -> Callable[[Any], int] | None:
        return self._padding.length if self._padding else None

    def tunable_options(self) -> Sequence[TunableOption]:
        on_gpu = find_devices(self._devices)[0].type == "cuda"
        values: dict[str, tuple[Any, Any]] = {"autocast": (None, "bfloat16")}
        if not self._torch_script_model_path:
            values["compile"] = (False, True)
        return [
            TunableOption(k, v, v[0], is_choice=True, applies=on_gpu) for k, v in values.items()
        ]

    def with_option(self, name: str, value: Any) -> Self:
        parse = {"autocast": parse_autocast_dtype, "compile": parse_compile_option}[name]
        return self._replace(**{f"_{name}": parse(value)})

    @property
    def _row_input(self) -> RowInput:  # type: ignore[override]
        return TensorInput(keyed=self._is_keyed, is_table=self._padding is None)

    def validate_whole_results(self) -> None:
        check_no_padding(self._padding)

    def _model_id(self) -> str | None:
        return (
            self._torch_script_model_path or self._torch_export_model_path or self._state_dict_path
        )

    def get_model_files(self) -> Sequence[str] | None:
        path = self._model_id()
        return [path] if path else None

    def _load_file(self, device: Any) -> Any:
        args, sha256 = self._load_model_args, self._model_sha256
        if self._torch_script_model_path:
            return load_torch_script(self._torch_script_model_path, device, args, sha256)
        if self._torch_export_model_path:
            return load_exported_program(self._torch_export_model_path, device, args, sha256)
        if self._model_class is None or self._state_dict_path is None:
            raise OptionError(
                f"{type(self).__name__} has no model. To fix this, pass state_dict_path and model_class, "
                "torch_script_model_path, or torch_export_model_path."
            )
        return load_weights(
            self._state_dict_path, self._model_class, self._model_params, args, sha256
        )


class PytorchModelHandlerTensor(_PytorchModelHandler):
    """Run a PyTorch model on tensors, stacked along a new first dimension.

    The tensors must have the same shape. With ``padding``, they may differ in one dimension.

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
    """Run a PyTorch model on dictionaries of tensors, whose keys are the names of the model's parameters.

    The tensors of each key are stacked along a new first dimension and must have the same shape. With ``padding``,
    they may differ in one dimension.
    """

    _default_inference_fn = staticmethod(default_keyed_tensor_inference_fn)
    _is_keyed = True


def _check_optional_path(name: str, path: str | os.PathLike[str] | None) -> str | None:
    return check_path(name, path) if path else None


def _check_types(
    model_params: Any, load_model_args: Any, inference_fn: Any, model_sha256: Any
) -> None:
    for name, value in (("model_params", model_params), ("load_model_args", load_model_args)):
        if value is not None:
            check_mapping(name, value)
    if inference_fn is not None:
        check_callable("inference_fn", inference_fn)
    if model_sha256 is not None:
        check_sha256("model_sha256", model_sha256)


def _check_sources(path: Any, model_class: Any, script_path: Any, program_path: Any) -> None:
    if (script_path and program_path) or ((script_path or program_path) and (path or model_class)):
        raise OptionError(
            f"{'torch_script' if script_path else 'torch_export'}_model_path holds a complete model. To fix this, "
            "pass it alone, or pass state_dict_path and model_class instead."
        )
    if path and model_class is None:
        raise OptionError(
            "state_dict_path needs model_class, which creates the module for the weights. If the file holds a "
            "complete model, pass it as torch_script_model_path or torch_export_model_path instead."
        )
    if model_class is not None and not path:
        raise OptionError("model_class needs state_dict_path, the path of its weights.")
    if model_class is not None and not callable(model_class):
        raise OptionError(
            "model_class must be a class or function that creates the module, but is a "
            f"{type(model_class).__name__}."
        )
    if isinstance(model_class, torch.nn.Module):
        raise OptionError(
            f"model_class is a module, an object of the class {type(model_class).__name__}. To fix this, pass the "
            "class, and the arguments of its constructor as model_params."
        )
