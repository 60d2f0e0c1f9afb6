"""Load PyTorch models from weights and a class, or from a TorchScript file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runinference.collate.rows import get_shape
from runinference.errors import ModelLoadError, ModelUnpicklingError
from runinference.extras import need
from runinference.model_file import open_model

torch = need("torch", extra="torch")


def load_weights(
    path: str,
    model_class: Callable[..., Any],
    model_params: Mapping[str, Any],
    load_model_args: Mapping[str, Any],
    sha256: str | None = None,
) -> Any:
    """Create a module in evaluation mode, and load its weights from a file of ``torch.save`` or safetensors."""
    weights = _read_weights(path, load_model_args, sha256)
    try:
        model = model_class(**model_params)
    except TypeError as error:
        raise ModelLoadError(
            f"{get_name(model_class)} cannot be created with model_params={model_params!r}: {error}."
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        name = get_name(model_class)
        raise _mismatched_weights_error(path, name, weights, model.state_dict()) from error
    return model.eval().requires_grad_(False)


def load_torch_script(
    path: str, device: Any, load_model_args: Mapping[str, Any], sha256: str | None = None
) -> Any:
    """Load a TorchScript module on a device, in evaluation mode."""
    with open_model(path, "torch_script_model_path", sha256) as file:
        try:
            return torch.jit.load(file, **{"map_location": device, **load_model_args}).eval()
        except (RuntimeError, ValueError, EOFError) as error:
            raise ModelLoadError(
                f"The file {path!r} cannot be loaded as TorchScript ({first_sentence(error)}). If it holds "
                "weights, pass it as state_dict_path together with model_class; if it holds a torch.export "
                "program, as torch_export_model_path. Otherwise, it may be truncated."
            ) from error


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error message, without ANSI color codes.

    >>> first_sentence(RuntimeError("No such key. Did you save it?"))
    'No such key'
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return re.split(r"(?<=\w)\.\s|\n", plain, maxsplit=1)[0].rstrip(".")[:300]


def get_name(model_class: Any) -> str:
    return str(getattr(model_class, "__name__", repr(model_class)))


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
            raise _unreadable_weights_error(path, error) from error
    if not isinstance(weights, Mapping):
        raise ModelLoadError(
            f"The file {path!r} holds a {type(weights).__name__}, not a state dictionary. To fix this, save only "
            "the weights: torch.save(model.state_dict(), path)."
        )
    return dict(weights)


def _read_safetensors(data: bytes, path: str) -> dict[str, Any]:
    safetensors = need("safetensors.torch", extra="torch")
    try:
        return safetensors.load(data)  # type: ignore[no-any-return]
    except Exception as error:
        raise ModelLoadError(
            f"The file {path!r} ends in .safetensors but cannot be read as safetensors ({error}). It may be "
            "truncated. If torch.save wrote it, give it another ending."
        ) from error


def _unreadable_weights_error(path: str, error: Exception) -> ModelUnpicklingError:
    message = str(error)
    if "TorchScript" in message:
        hint = "It is a TorchScript file: pass it as torch_script_model_path, without model_class."
    elif "file data.pkl" in message:
        hint = "If it is a torch.export program, pass it as torch_export_model_path, without model_class."
    elif "GLOBAL" in message or "Unsupported class" in message:
        hint = (
            "It holds more than weights, and loading it could run code. To fix this, save only the weights: "
            "torch.save(model.state_dict(), path). If you trust the file, set "
            "load_model_args={'weights_only': False}."
        )
    else:
        hint = "It may be truncated, or not written by torch.save(model.state_dict(), path)."
    return ModelUnpicklingError(
        f"The file {path!r} (state_dict_path) cannot be loaded as weights ({first_sentence(error)}). {hint}"
    )


def _mismatched_weights_error(
    path: str, name: str, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> ModelLoadError:
    in_file = {key: _format_shape(value) for key, value in found.items()}
    in_model = {key: _format_shape(value) for key, value in expected.items()}
    unexpected = [key for key in found if key not in expected]
    differences = {
        "missing from the file": [key for key in expected if key not in found],
        "not in the model": unexpected,
        "different shape": [
            f"{key} is {in_file[key]} in the file and {shape} in the model"
            for key, shape in in_model.items()
            if in_file.get(key, shape) != shape
        ],
    }
    listed = "; ".join(f"{k}: {shorten(keys)}" for k, keys in differences.items() if keys)
    if len(unexpected) == len(found) and any(key.startswith("module.") for key in unexpected):
        hint = "The weights come from DataParallel. To fix this, save model.module.state_dict()."
    elif nested := [key for key, value in found.items() if isinstance(value, Mapping)]:
        hint = (
            "The file is a checkpoint with several entries. To fix this, save only the weights, for example "
            f"those under {nested[0]!r}."
        )
    else:
        hint = "Check that model_class and model_params create the model that the weights were saved from."
    return ModelLoadError(f"The weights in {path!r} do not fit {name}: {listed}. {hint}")


def _format_shape(value: Any) -> str:
    shape = get_shape(value)
    return type(value).__name__ if shape is None else str(shape)


def shorten(keys: Sequence[str]) -> str:
    """Join the first three names of a list for an error message, with the number of the others."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
