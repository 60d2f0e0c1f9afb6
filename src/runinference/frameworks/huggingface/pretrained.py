"""The base of the handlers that load a model with ``from_pretrained``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from runinference.checks import check_mapping
from runinference.errors import OptionError
from runinference.frameworks.huggingface.loading import load_from_folder, load_pretrained
from runinference.frameworks.torch.device_copies import load_on_devices
from runinference.frameworks.torch.devices import find_devices, get_model_device, parse_devices
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.handlers.tunable import Tunable
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import torch


class PretrainedModelHandler(Tunable, ModelHandler[Any, PredictionResult, Any]):
    """The base of the handlers that load a Transformers class on one or several PyTorch devices."""

    _path_attribute = "_model_uri"
    _supports_dynamic_batching = True

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: type[Any],
        device: str | torch.device | Sequence[str | torch.device],
        load_model_args: dict[str, Any] | None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        super().__init__(**options)
        model_uri = os.fspath(model_uri) if isinstance(model_uri, os.PathLike) else model_uri
        if not isinstance(model_uri, str) or not model_uri:
            raise OptionError(
                "model_uri must be a directory that save_pretrained wrote, or the name of a model on the Hub, but "
                f"is {model_uri!r}."
            )
        if not callable(getattr(model_class, "from_pretrained", None)):
            raise OptionError(
                "model_class must be a Transformers class, such as transformers.AutoModel, but is "
                f"{model_class!r}, which has no from_pretrained."
            )
        devices = parse_devices(device)
        if load_model_args is not None:
            check_mapping("load_model_args", load_model_args)
        if len(devices) > 1 and "device_map" in (load_model_args or {}):
            raise OptionError(
                f"device is {device!r}, and load_model_args has 'device_map'. To fix this, leave device out to "
                "distribute one model over the devices, or leave 'device_map' out to have a copy on each device."
            )
        self._model_uri = model_uri
        self._model_class = model_class
        self._device = device
        self._model_config_args = load_model_args or {}

    def load_model(self) -> Any:
        """Load the model on its device, or on each of its devices, in evaluation mode.

        Raises:
            ModelNotFoundError: There is no such directory, and no such model in the cache or on the Hub.
            ModelLoadError: The class can't load the model, or the model lacks weights that the class needs.
        """

        def load(folder: str) -> Any:
            handler = self._replace(_model_uri=folder)
            return load_on_devices(find_devices(parse_devices(self._device)), handler._load_on)

        # Weights that a device map assigns to the disk stay in these files.
        keep = "device_map" in self._model_config_args
        return load_from_folder(self._model_uri, "model_uri", load, keep=keep)

    def _load_on(self, device: Any) -> Any:
        return load_pretrained(self._model_uri, self._model_class, self._model_config_args, device)

    @property
    def _n_devices(self) -> int:
        return len(parse_devices(self._device))

    def _get_device(self, model: Any) -> Any:
        return get_model_device(model, parse_devices(self._device)[0])


def no_cache_args(model: Any) -> dict[str, Any]:
    """Return the keywords that keep a model from returning its key-value cache, if it has one."""
    forward = getattr(model, "forward", None)
    parameters = inspect.signature(forward).parameters if forward else {}
    return {name: False for name in ("use_cache", "use_mems") if name in parameters}
