"""The options every handler takes, described once; and no option that nobody knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import TypedDict

from runinference.errors import UnknownOptionError, suggest


class HandlerOptions(TypedDict, total=False):
    """Keywords of every handler. All are optional; ``None`` means "not given".

    Attributes:
        min_batch_size: The fewest elements in a batch, as far as a bundle has as many.
        max_batch_size: The most elements in a batch. Equal to ``min_batch_size``, the size is fixed;
            otherwise it is found by measuring.
        max_batch_duration_secs: Seconds an element may wait for others. When given, elements of several
            bundles share a batch: useful where a stream comes in small bundles.
        max_batch_weight: The most a batch may weigh, in the units of ``element_size_fn``.
        element_size_fn: Gives the weight of one element. Without it each element weighs 1. Without
            ``max_batch_weight``, ``max_batch_size`` is the most weight, as in Beam.
        batch_length_fn: Gives the length of one element; elements of similar length share a batch.
        batch_bucket_boundaries: Where one bucket of lengths ends and the next begins, ascending; a length
            on the boundary is in the upper bucket.
        max_batch_bytes: The most bytes of input in a batch; by default 64 MiB.
        max_padded_size: The most a batch may measure after padding, its longest element times its number of
            elements, in the units of ``batch_length_fn``, which it needs. Elements are gathered in a window
            (1,024 or more), sorted by length, and cut into batches, longest first; an element longer than
            this goes alone. The number of elements then follows from it and is not found by measuring.
        large_model: One copy of the model for all processes of a machine.
        model_copies: So many copies of the model for all processes of a machine.
        env_vars: Environment variables to set before the model loads.
    """

    min_batch_size: int | None
    max_batch_size: int | None
    max_batch_duration_secs: float | None
    max_batch_weight: int | None
    element_size_fn: Callable[[Any], int] | None
    batch_length_fn: Callable[[Any], int] | None
    batch_bucket_boundaries: list[int] | None
    max_batch_bytes: int | None
    max_padded_size: int | None
    large_model: bool
    model_copies: int | None
    env_vars: Mapping[str, str] | None


#: Names of the shared options in the order of the table above.
SHARED = tuple(HandlerOptions.__annotations__)


def spell_out(function: Callable[..., Any], base: Callable[..., Any] | None = None) -> None:
    """Shows the shared options in the signature of a function that takes them as ``**options``.

    Those are the ``HandlerOptions``; or, where the annotation names other options, the arguments of ``base``, to
    which the function hands them on.
    """
    signature = inspect.signature(function)
    *named, last = signature.parameters.values()
    if last.kind is not last.VAR_KEYWORD or "Options]" not in str(last.annotation):
        return
    shared = [inspect.Parameter(name, last.KEYWORD_ONLY, default=None) for name in SHARED]
    if "HandlerOptions" not in str(last.annotation) and base is not None:
        shared = [p for p in inspect.signature(base).parameters.values() if p.name != "self"]
    taken = {p.name for p in named}
    shown = [p.replace(kind=p.KEYWORD_ONLY) for p in shared if p.name not in taken]
    function.__signature__ = signature.replace(parameters=[*named, *shown])  # type: ignore[attr-defined]


def show_signature(owner: type) -> None:
    """Shows the options of ``__init__`` as the signature of a class, though ``__new__`` looks at them first."""
    signature = inspect.signature(owner.__init__)  # type: ignore[misc]
    _, *parameters = signature.parameters.values()
    owner.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]


def refuse_unknown(owner: type, given: Mapping[str, object]) -> None:
    """Raises for a keyword that ``owner`` does not take, and names the nearest one that it does.

    Raises:
        UnknownOptionError: Also a ``TypeError``.
    """
    parameters = inspect.signature(owner.__init__).parameters  # type: ignore[misc]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            known = [known for known in parameters if known != "self"]
            raise UnknownOptionError(
                f"{owner.__name__} has no option {name!r}.{suggest(name, known)}"
                f" Its options are: {', '.join(known)}."
            )
