"""Describe why TensorFlow or Keras can't load or call a model."""

from __future__ import annotations

import re

from runinference.errors import ModelLoadError
from runinference.extras import need

tf = need("tensorflow", extra="tensorflow")

_LOCATION = r"Graph execution error|Detected at node|<stack traces|in user code|\s+File "


def cannot_load(
    path: str, error: Exception, keras_version: str = "", option: str = "model_uri"
) -> ModelLoadError:
    """Build the error for a model that can't be loaded, from an error of TensorFlow or Keras."""
    message = summarize(error)
    if isinstance(error, TypeError) and "unexpected keyword" in message:
        hint = "Check the keywords in load_model_args."
    elif _parse_version(keras_version) > _parse_version(tf.keras.__version__):
        installed = tf.keras.__version__
        hint = f"Keras {keras_version} wrote it, but Keras {installed} is installed: install a later TensorFlow."
    elif unknown := re.search(r"Could not locate [^.]*|Unknown layer[^.]*", str(error)):
        message = unknown[0]
        hint = "Pass the missing objects: load_model_args={'custom_objects': {'Name': Name}}."
    elif "Op type not registered" in message:
        hint = f"Import the package that registers it, or install a later TensorFlow than {tf.__version__}."
    else:
        hint = "It may be truncated or damaged: copy it again."
    return ModelLoadError(f"{path!r} ({option}) cannot be loaded ({message}). {hint}")


def summarize(error: Exception) -> str:
    """Return the line of a message that states the cause, without colors, stack traces and node names."""
    bold = re.search(r"\x1b\[1m(.+?)\x1b\[0m", str(error), re.DOTALL)  # Keras prints it in bold
    # After the frames of the code, its message has the error.
    raised = re.search(r"\A(?:\S+: )?in user code:\n.*?\n    \w+: (.+)", str(error), re.DOTALL)
    found = bold or raised
    lines = (found[1] if found else str(error)).strip().splitlines()
    causes = [line for line in lines if line.strip() and not re.match(_LOCATION, line)]
    if not causes:
        return type(error).__name__
    cause = " ".join(causes[:2]) if causes[0].endswith(":") else causes[0]
    return re.sub(r"\{\{.*?\}\}\s*", "", cause).strip(" .")[:300]


def _parse_version(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
