"""Give wrappers of user functions the parameters that Beam reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def copy_parameters(function: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
    """Copy a function's parameters, such as ``DoFn.TimestampParam``, to its wrapper, so that Beam reads them.

    Type annotations aren't copied.

    Args:
        function: The wrapped function.
        wrapper: The function that is passed to Beam.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (ValueError, TypeError):  # a function in C without a signature
        parameters = [inspect.Parameter("element", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    )
