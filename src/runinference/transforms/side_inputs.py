"""Arguments for the model's calls that come from the pipeline: a side input in place of a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apache_beam.pvalue import AsSideInput

from runinference.errors import OptionError


def is_side_input(inference_args: Any) -> bool:
    """Whether ``inference_args`` are a side input, such as ``AsDict``."""
    return isinstance(inference_args, AsSideInput)


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values of a side input are the same; arrays that cannot be compared are not."""
    try:
        return bool(one == other)
    except ValueError:
        return False


def checked(handler: Any, arguments: Any) -> dict[str, Any]:
    """What a side input gave, as the arguments of a call.

    Raises:
        OptionError: It gave no dictionary.
        Exception: What the handler's ``validate_inference_args`` raises.
    """
    if not isinstance(arguments, Mapping):
        raise OptionError(
            f"inference_args from the pipeline must be a dictionary, and the side input gave {arguments!r:.60}. "
            "Give beam.pvalue.AsDict(pairs of name and value), or AsSingleton of a dictionary."
        )
    handler.validate_inference_args(arguments)
    return dict(arguments)
