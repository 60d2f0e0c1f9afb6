"""How a PyTorch model is made of a file: weights and their class, or a TorchScript file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from runinference.errors import ModelLoadError
from runinference.extras import need
from runinference.model_file import open_model

torch = need("torch", extra="torch")


def build(
    path: str,
    make: Callable[..., Any],
    model_params: Mapping[str, Any],
    load_model_args: Mapping[str, Any],
    sha256: str | None = None,
) -> Any:
    """The module that ``make`` makes, with the weights in a file, in evaluation mode and frozen.

    Args:
        path: A file of ``torch.save`` or safetensors.
        make: A class or function.
        model_params: Its keywords.
        load_model_args: Keywords for ``torch.load``.
        sha256: The digest that the file must have.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: The file holds no weights or has another digest, or the weights do not fit.
    """
    weights = _read_weights(path, load_model_args, sha256)
    try:
        model = make(**model_params)
    except TypeError as error:
        raise ModelLoadError(
            f"{_name_of(make)} cannot be made with model_params={model_params!r}: {error}."
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _does_not_fit(path, make, weights, model.state_dict()) from error
    return model.eval().requires_grad_(False)


def read_torch_script(
    path: str, device: Any, load_model_args: Mapping[str, Any], sha256: str | None = None
) -> Any:
    """The module in a TorchScript file, in evaluation mode.

    Args:
        path: The file.
        device: Where its weights go.
        load_model_args: Keywords for ``torch.jit.load``.
        sha256: The digest that the file must have.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelLoadError: The file is of another kind, truncated, or has another digest.
    """
    with open_model(path, "torch_script_model_path", sha256) as file:
        try:
            return torch.jit.load(file, **{"map_location": device, **load_model_args}).eval()
        except (RuntimeError, ValueError, EOFError) as error:
            raise ModelLoadError(
                f"The file {path!r} cannot be loaded as TorchScript ({first_sentence(error)}). If it holds "
                "weights, give it as state_dict_path together with model_class; if it is a program of "
                "torch.export, as torch_export_model_path; otherwise it may be truncated."
            ) from error


def _read_weights(
    path: str, load_model_args: Mapping[str, Any], sha256: str | None
) -> dict[str, Any]:
    with open_model(path, "state_dict_path", sha256) as file:
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


def _not_weights(path: str, error: Exception) -> ModelLoadError:
    said = str(error)
    if "TorchScript" in said:
        cure = "It is a TorchScript file: give it as torch_script_model_path, without model_class."
    elif "file data.pkl" in said:
        cure = "If it is a program of torch.export, give it as torch_export_model_path, without model_class."
    elif "GLOBAL" in said or "Unsupported class" in said:
        cure = (
            "It holds more than weights, and loading it could run code. Save the weights alone: "
            "torch.save(model.state_dict(), path). If you trust the file: "
            "load_model_args={'weights_only': False}."
        )
    else:
        cure = "It may be truncated, or of another kind than torch.save(model.state_dict(), path) writes."
    return ModelLoadError(
        f"The file {path!r} (state_dict_path) cannot be loaded as weights ({first_sentence(error)}). {cure}"
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


def first_sentence(error: Exception) -> str:
    """The first sentence of what PyTorch says, without the codes that colour it.

    >>> first_sentence(RuntimeError("No such key. Did you save it?"))
    'No such key'
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    return re.split(r"(?<=\w)\.\s|\n", plain, maxsplit=1)[0][:200]


def _name_of(make: Any) -> str:
    return str(getattr(make, "__name__", repr(make)))
