"""Functions that wrap those of users, and have the same parameters for Beam."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def copy_parameters(function: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
    """Give a wrapper the parameters of a function, such as ``DoFn.TimestampParam``, which Beam reads.

    The parameters have no types.

    Args:
        function: The wrapped function.
        wrapper: The function that Beam gets.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (ValueError, TypeError):  # a function in C without a signature
        parameters = [inspect.Parameter("element", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    )
