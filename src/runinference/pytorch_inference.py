"""Handlers for PyTorch models, on tensors or on dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.padding import Padding
from runinference.errors import OptionError
from runinference.frameworks.torch.calling import (
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
    needs_lengths,
    padded,
    padding_of,
    refuse_padding,
    unsplit,
)
from runinference.frameworks.torch.compile import compile_args, compile_model
from runinference.frameworks.torch.devices import (
    autocast,
    channels_last,
    device_named,
    device_of,
    dtype_named,
    usable,
)
from runinference.frameworks.torch.exported_program import read_exported
from runinference.frameworks.torch.loading import build, read_torch_script
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

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

    @accepts(HandlerOptions)
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
        torch_export_model_path: str | None = None,
        model_sha256: str | None = None,
        compile: bool | str | dict[str, Any] = False,
        autocast: Any = None,
        channels_last: bool = False,
        padding: Padding | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the weights and the class they belong to, or a file that holds a whole model.

        Args:
            state_dict_path: The path of the weights, on any file system that Beam reads: a state dictionary
                that ``torch.save`` wrote, or a file that ends in ``.safetensors``. It is loaded with
                ``weights_only=True`` and runs no code.
            model_class: Makes the module that the weights belong to: a class or a function.
            model_params: Keywords for ``model_class``.
            device: ``"CPU"``, ``"GPU"``, or any device of PyTorch, such as ``"cuda:1"`` or ``"mps"``. Where
                there is no such device, the model runs on the CPU, with a warning. Results come to the CPU.
            inference_fn: Calls the model, in place of the default; gets the examples, the model, its device,
                the inference arguments and the model's id, and returns the results.
            torch_script_model_path: The path of a TorchScript file, in place of weights and class.
            load_model_args: Keywords for ``torch.load``, ``torch.jit.load`` or ``torch.export.load``.
            torch_export_model_path: The path of a file of ``torch.export.save``, in place of weights and class.
                Loading one may run code: load only files that you trust.
            model_sha256: The SHA-256 digest that the file must have, in hexadecimal digits; checked before
                anything of it is loaded.
            compile: True, or a mode such as ``"max-autotune"``, or keywords for ``torch.compile``: the model is
                compiled when it is first called.
            autocast: ``"bfloat16"`` or ``"float16"``: mixed precision. Results of the default functions are
                float32 again.
            channels_last: Whether a model of pictures computes in that order of memory, which convolutions are
                faster in. Examples may have any order.
            padding: How tensors of several lengths become one batch; without it they must have one shape. It
                also gives the lengths for ``max_padded_size`` and ``batch_bucket_boundaries``, unless there is
                a ``batch_length_fn``.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: Weights without a class, a class without weights, several kinds of model, an unknown
                device, mode or precision; padding together with an ``inference_fn`` of your own; ``compile``
                with TorchScript.
        """
        if padding is not None and needs_lengths(options):
            options["batch_length_fn"] = padding.length
        super().__init__(**options)
        whole = {
            "torch_script_model_path": torch_script_model_path,
            "torch_export_model_path": torch_export_model_path,
        }
        _check_sources(state_dict_path, model_class, {k: v for k, v in whole.items() if v})
        self._state_dict_path = state_dict_path
        self._model_class = model_class
        self._model_params = model_params or {}
        self._device = device_named(device)
        self._inference_fn = inference_fn or type(self)._default_inference_fn
        if padding is not None:
            self._inference_fn = padded(self._inference_fn, padding)
        self._torch_script_model_path = torch_script_model_path
        self._load_model_args = load_model_args or {}
        self._torch_export_model_path = torch_export_model_path
        self._model_sha256 = model_sha256
        self._compile = compile_args(compile)
        self._autocast = dtype_named(autocast)
        self._channels_last = channels_last
        if torch_script_model_path and self._compile is not None:
            raise OptionError(
                "torch.compile does not compile TorchScript. Leave compile out, or give the weights with "
                "state_dict_path and model_class, or a program of torch.export."
            )

    # Programs subclass this handler, and some do not call the constructor: then these hold.
    _torch_export_model_path: str | None = None
    _model_sha256: str | None = None
    _compile: dict[str, Any] | None = None
    _autocast: Any = None
    _channels_last = False

    def load_model(self) -> Any:
        """The model on its device, in evaluation mode.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is of another kind or has another digest, its weights do not fit the class,
                or this machine cannot compile.
        """
        device = usable(self._device)
        model = self._read(device).to(device)
        if self._channels_last:
            model = channels_last(model)
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
        self, batch: Sequence[Any], model: Any, inference_args: _InferenceArgs = None
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are keywords of the model's call."""
        device, call = device_of(model, self._device), self._inference_fn
        if self.gives_whole_results():
            call = unsplit(call, self.results_of)
        with autocast(device, self._autocast):
            return call(batch, model, device, inference_args or {}, self._model_id())

    def validate_whole_results(self) -> None:
        refuse_padding(padding_of(self._inference_fn))

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_PyTorch"

    def _model_id(self) -> str | None:
        return (
            self._torch_script_model_path or self._torch_export_model_path or self._state_dict_path
        )

    def _read(self, device: Any) -> Any:
        args, sha256 = self._load_model_args, self._model_sha256
        if self._torch_script_model_path:
            return read_torch_script(self._torch_script_model_path, device, args, sha256)
        if self._torch_export_model_path:
            return read_exported(self._torch_export_model_path, device, args, sha256)
        if self._model_class is None or self._state_dict_path is None:
            raise OptionError(
                f"{type(self).__name__} has no model: give state_dict_path and model_class, or "
                "torch_script_model_path, or torch_export_model_path."
            )
        return build(self._state_dict_path, self._model_class, self._model_params, args, sha256)


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


def _check_sources(path: str | None, make: Any, whole: dict[str, str]) -> None:
    if whole and (path or make or len(whole) > 1):
        raise OptionError(
            f"{next(iter(whole))} holds a whole model: give it alone, or state_dict_path and model_class."
        )
    if path and make is None:
        raise OptionError(
            "state_dict_path needs model_class: the file holds weights, and the class makes the module that "
            "they belong to. A file that holds a whole model needs no class: give TorchScript as "
            "torch_script_model_path, and a program of torch.export as torch_export_model_path."
        )
    if make is not None and not path:
        raise OptionError("model_class needs state_dict_path, the file of its weights.")
