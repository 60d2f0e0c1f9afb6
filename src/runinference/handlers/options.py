"""The options that every handler takes, and the check that rejects unknown keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from typing_extensions import Self, TypedDict, TypeVar

from runinference.collate.unbatch import ListOutput
from runinference.errors import OptionError, UnknownOptionError, suggest

FunctionT = TypeVar("FunctionT", bound=Callable[..., None])


class HandlerOptions(TypedDict, total=False):
    """Keyword arguments of every handler. All are optional; ``None`` means "not given".

    Attributes:
        min_batch_size: Minimum number of elements in a batch, unless the bundle ends or another limit applies
            first. Default: 1.
        max_batch_size: Maximum number of elements in a batch. If equal to ``min_batch_size``, the size is fixed;
            otherwise it adapts to measured throughput. Default: 10,000.
        max_batch_duration_secs: Maximum time in seconds that an element waits for a batch to fill. If set, batches
            span bundles, which helps streams with small bundles.
        max_batch_weight: Maximum weight of a batch, in the units of ``element_size_fn``.
        element_size_fn: Returns the weight of one element, at least 0. By default each element weighs 1. Without
            ``max_batch_weight``, ``max_batch_size`` is the maximum weight, as in Beam.
        batch_length_fn: Returns the length of one element, at least 0. Elements of similar length share a batch.
        batch_bucket_boundaries: Ascending lengths at which length buckets begin. An element whose length equals
            a boundary belongs to the upper bucket. A batch contains elements of one bucket. Needs
            ``batch_length_fn``. Default: 16, 32, 64, 128, 256 and 512, unless ``max_padded_size`` is set.
        max_batch_bytes: Maximum size of a batch's input in bytes. Default: 64 MiB.
        max_padded_size: Maximum size of a batch after padding, which is its longest element times its number of
            elements, in the units of ``batch_length_fn`` (required). Elements are buffered (1,024 or more),
            sorted by length, and cut into batches, longest first. An element longer than this gets its own
            batch. The number of elements follows from this limit and is not tuned.
        large_model: Whether all worker processes of a machine share one copy of the model. Default: False.
        model_copies: Number of copies of the model that all worker processes of a machine share.
        env_vars: Environment variables to set before the model is loaded. They must not contain secrets, because
            they are stored in the pipeline. Set secrets on the workers instead.
        list_output: How to interpret a list of arrays in the model's output: ``"per_element"`` for one item per
            element, or ``"multi_output"`` for several outputs, each with one row per element. If not given,
            such a list raises an error, because it is ambiguous. A tuple always means several outputs.
    """

    min_batch_size: int | None
    max_batch_size: int | None
    max_batch_duration_secs: float | None
    max_batch_weight: float | None
    element_size_fn: Callable[[Any], float] | None
    batch_length_fn: Callable[[Any], int] | None
    batch_bucket_boundaries: Sequence[float] | None
    max_batch_bytes: int | None
    max_padded_size: int | None
    large_model: bool
    model_copies: int | None
    env_vars: Mapping[str, str] | None
    list_output: ListOutput | None


def check_list_output(value: Any) -> ListOutput | None:
    """Return the value of the option ``list_output``; raise `OptionError` if it is not valid."""
    choices = get_args(ListOutput)
    if value is not None and not (isinstance(value, str) and value in choices):
        raise OptionError(
            f"list_output must be 'per_element' or 'multi_output', but is {value!r}."
            f"{suggest(str(value), choices)}"
        )
    return cast(ListOutput | None, value)


def accepts(options: type | Callable[..., None]) -> Callable[[FunctionT], FunctionT]:
    """Decorate a constructor so that its signature lists the options that it takes as ``**options``.

    Args:
        options: A ``TypedDict`` of options, or the base constructor that gets them.
    """

    def decorate(function: FunctionT) -> FunctionT:
        signature = inspect.signature(function)
        *named, _ = signature.parameters.values()
        keywords = [p for p in _keywords(options) if p.name not in signature.parameters]
        function.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        return function

    return decorate


def _keywords(options: type | Callable[..., None]) -> list[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    if isinstance(options, type):
        return [inspect.Parameter(n, keyword, default=None) for n in options.__annotations__]
    return [p.replace(kind=keyword) for p in inspect.signature(options).parameters.values()]


class _ConstructorSignature:
    """The signature of ``__init__``, which ``inspect.signature`` would not find behind ``__new__``."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=[*signature.parameters.values()][1:])


class KeywordsChecked:
    """A base class whose subclasses reject keywords that their constructor doesn't take.

    The check is in ``__new__`` because it also covers constructors that a dataclass generates, and because
    Python suggests the right keyword only from version 3.13.
    """

    __signature__ = _ConstructorSignature()

    def __new__(cls, *args: Any, **options: Any) -> Self:
        parameters = inspect.signature(cls.__init__).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            reject_unknown(cls, options, parameters)
        return super().__new__(cls)


def reject_unknown(owner: type, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UnknownOptionError`, with a suggestion, for a keyword that isn't known."""
    known = [name for name in known if name != "self"]
    for name in given:
        if name not in known:
            raise UnknownOptionError(
                f"{owner.__name__} has no option {name!r}.{suggest(name, known)}"
                f" Its options are: {', '.join(known)}."
            )


def constructor_keywords(owner: type) -> list[str]:
    """Return the named parameters of the constructors of a class and its bases, without duplicates."""
    constructors = [vars(base)["__init__"] for base in owner.__mro__ if "__init__" in vars(base)]
    parameters = [p for init in constructors for p in inspect.signature(init).parameters.values()]
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return list(dict.fromkeys(named))
