"""The mapping of keys to models, and its validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from apache_beam.internal import pickler

from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import OptionError, describe_value
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT

KeyT = TypeVar("KeyT")

_PLAIN_TYPES = frozenset({str, bytes, int, bool, type(None)})


class KeyModelMapping(Generic[KeyT, ExampleT, PredictionT, ModelT]):
    """A mapping of keys to the model handler that their elements use."""

    def __init__(self, keys: list[KeyT], mh: ModelHandler[ExampleT, PredictionT, ModelT]) -> None:
        """Map keys to a model handler.

        Args:
            keys: The keys: hashable values, such as strings. At least one.
            mh: The handler for elements with one of these keys. It takes examples without keys.
        """
        self.keys = list(keys) if _is_list(keys) else keys  # other values are rejected later
        self.mh = mh


def check_mappings(mappings: Sequence[Any]) -> None:
    """Raise `OptionError` unless each key has one model, and each handler takes examples and has no functions."""
    if not mappings:
        raise OptionError(
            "KeyedModelHandler got an empty list. Give it a handler, or a list of KeyModelMapping(keys, handler)."
        )
    _check_variables(mappings)
    owners: dict[Any, int] = {}
    for number, mapping in enumerate(mappings):
        _check_mapping(number, mapping)
        for key in mapping.keys:
            try:
                owner = owners.get(key)
            except TypeError as error:
                raise OptionError(not_hashable_message(key, error)) from None
            if owner is not None:
                raise OptionError(
                    f"The key {describe_value(key)} is in KeyModelMapping number {owner} and number {number}. "
                    "Each key has one model. To fix this, remove the key from one of them."
                )
            _check_equality(key)
            owners[key] = number


def check_handler_object(handler: Any, wrapper: str) -> None:
    """Raise `OptionError` unless an object has the methods of a model handler."""
    if isinstance(handler, type):
        raise OptionError(
            f"{wrapper} got the class {handler.__name__}. To fix this, pass an instance: {handler.__name__}(...)."
        )
    if not has_handler_methods(handler):
        raise OptionError(
            f"{wrapper} takes a model handler, such as SklearnModelHandlerNumpy(model_uri=...), but got a "
            f"{type(handler).__name__}."
        )


def has_handler_methods(value: Any) -> bool:
    """Return whether an object or class has the methods that every model handler must define."""
    return all(hasattr(value, name) for name in ("load_model", "run_inference"))


def reject_functions(unkeyed: Any, wrapper: str) -> None:
    """Raise `OptionError` if a handler has functions: when wrapped, they would not receive the key."""
    for functions, kind in (
        (unkeyed.get_preprocess_fns(), "preprocess"),
        (unkeyed.get_postprocess_fns(), "postprocess"),
    ):
        if functions:
            raise OptionError(
                f"{wrapper} wraps a {type(unkeyed).__name__} that already has {kind}ing functions. To fix this, "
                "add the function to the outer handler, where it receives key and example: "
                f"{wrapper}(handler).with_{kind}_fn(fn)."
            )


def _check_variables(mappings: Sequence[Any]) -> None:
    """Raise `OptionError` if two handlers set a variable to different values: they share the environment."""
    found: dict[str, str] = {}
    for mapping in mappings:
        for name, value in getattr(getattr(mapping, "mh", None), "_env_vars", {}).items():
            if found.setdefault(name, value) != value:
                raise OptionError(
                    f"Two handlers of a KeyedModelHandler set the environment variable {name} to different "
                    "values, but they share a process. To fix this, give them the same env_vars."
                )


def _check_mapping(number: int, mapping: Any) -> None:
    if not hasattr(mapping, "keys") or not hasattr(mapping, "mh"):
        raise OptionError(
            f"KeyedModelHandler takes a list of KeyModelMapping(keys, handler), but item {number} is a "
            f"{type(mapping).__name__}."
        )
    if not _is_list(mapping.keys) or not list(mapping.keys):
        raise OptionError(
            f"KeyModelMapping number {number} needs a list of one or more keys, but has "
            f"{describe_value(mapping.keys)}."
        )
    check_handler_object(mapping.mh, f"KeyModelMapping number {number}")
    reject_functions(mapping.mh, "KeyedModelHandler")
    if mapping.mh.should_skip_batching():
        argument = "whole_results=True" if returns_unsplit_results(mapping.mh) else ""
        raise OptionError(
            "A handler inside a KeyModelMapping cannot skip batching for its keys alone. To fix this, skip it for "
            f"all keys: KeyedModelHandler([...]).with_no_batching({argument})."
        )


def _is_list(keys: Any) -> bool:
    is_array = hasattr(keys, "shape") and len(keys.shape) != 1  # a single value, or a table
    is_list = isinstance(keys, Iterable) and not isinstance(keys, (str, bytes, bytearray))
    return is_list and not is_array


def _check_equality(key: Any) -> None:
    """Raise `OptionError` if the copy of a key, as elements with keys travel between workers, is another key."""
    if type(key) in _PLAIN_TYPES:
        return
    try:
        copied = pickler.loads(pickler.dumps(key))
    except Exception:  # building a pipeline raises if the key has to be pickled
        return
    if copied not in {key}:
        raise OptionError(
            f"The key {describe_value(key)} of type {type(key).__name__} does not equal its pickled copy, so "
            "no element would find its model. To fix this, use a string, a number other than NaN or a tuple of "
            "these, or define __eq__ and __hash__."
        )


def not_hashable_message(key: Any, error: TypeError) -> str:
    return (
        f"A key must be hashable, but {describe_value(key, 60)} of type {type(key).__name__} is not ({error}). To "
        "fix this, use a string, a number or a tuple of these, for example with "
        "beam.Map(lambda pair: (tuple(pair[0]), pair[1]))."
    )
