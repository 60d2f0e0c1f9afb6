"""The sample that is measured: preprocessed elements, and the handler that takes them."""

from __future__ import annotations

from itertools import islice
from typing import Any

from runinference.checks import check_elements
from runinference.errors import (
    ElementError,
    OptionError,
    TuningError,
    describe,
    describe_value,
)
from runinference.handlers.key_mapping import check_handler_object
from runinference.handlers.keyed import (
    KeyedModelHandler,
    MaybeKeyedModelHandler,
    per_key_mappings,
)
from runinference.handlers.model_per_key import split_pair

#: The most elements that are measured. `max_padded_size` sorts this many by length.
MAX_ELEMENTS = 1_024


def prepare_sample(handler: Any, elements: Any) -> tuple[Any, list[Any]]:
    """Return the handler that calls the model, and preprocessed elements without keys.

    Raises:
        OptionError: The handler or the elements can't be tuned.
        TuningError: A preprocessing function fails.
    """
    check_handler_object(handler, "tune")
    sample = list(enumerate(_take(elements)))
    while True:
        if handler.should_skip_batching():
            raise OptionError(
                f"The elements of this {type(handler).__name__} are already batches. To fix this, tune the "
                "handler without with_no_batching, and use batches of the recommended size."
            )
        if per_key_mappings(handler):
            raise OptionError(
                "tune takes a handler with one model, but this KeyedModelHandler has several. To fix this, "
                "tune the handler of each KeyModelMapping separately."
            )
        for function in handler.get_preprocess_fns():
            sample = [(index, _preprocess(function, index, each)) for index, each in sample]
        if not isinstance(handler, (KeyedModelHandler, MaybeKeyedModelHandler)):
            return handler, [element for _, element in sample]
        sample = [(index, _remove_key(handler, index, each)) for index, each in sample]
        [handler] = handler.inner_handlers()


def _take(elements: Any) -> list[Any]:
    check_elements("elements", elements)
    sample = list(islice(elements, MAX_ELEMENTS))
    if not sample:
        raise OptionError("elements is empty. To fix this, pass some elements of your pipeline.")
    return sample


def _preprocess(function: Any, index: int, element: Any) -> Any:
    try:
        return function(element)
    except Exception as error:
        raise element_error(index, element, error, "A preprocessing function fails on") from error


def _remove_key(handler: Any, index: int, element: Any) -> Any:
    if isinstance(handler, MaybeKeyedModelHandler) and not isinstance(element, tuple):
        return element
    try:
        return split_pair(element)[1]
    except ElementError as error:
        raise element_error(index, element, error, "The handler fails on") from error


def element_error(index: int, element: Any, error: BaseException, what: str) -> TuningError:
    """Return an error that describes an element and the error that it caused."""
    return TuningError(
        f"{what} element {index} of the sample: {describe(error, 2_000)}\n"
        f"The element is {describe_value(element)}.\n"
        "To fix this, correct the handler, or remove the element from the sample. To see the traceback, call "
        "predict([element]) of the handler."
    )
