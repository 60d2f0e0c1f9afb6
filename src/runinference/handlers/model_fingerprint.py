"""Fingerprints that are equal for handlers that load the same model, or return the same results."""

from __future__ import annotations

import hashlib
from typing import Any

from apache_beam.internal import pickler

from runinference.errors import OptionError, describe
from runinference.handlers.delegating import DelegatingHandler
from runinference.handlers.keyed import (
    per_key_mappings,
)
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.stable_bytes import get_class_code, get_class_name, to_stable_bytes

#: Attributes of handlers that say how a model is called, and not which one is loaded.
_OF_CALLS = frozenset(
    {
        "_batching_kwargs",
        "_by_key",
        "_inference_fn",
        "_max_batch_bytes",
        "_max_padded_size",
        "_model_inference_fn",
        "_n_path_updates",
        "_postprocess_fns",
        "_preprocess_fns",
        "_skips_batching",
        "_texts",
        "_whole_results",
        "get_postprocess_fns",
        "get_preprocess_fns",
    }
)


def fingerprint(handler: Any, *more: Any) -> str:
    """Return a text that is equal for handlers of one class that load the same model, also in other processes.

    It depends on all attributes that may affect the model, such as paths. Options for batching and functions that
    call the model have no effect.

    >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
    >>> small = SklearnModelHandlerNumpy("a.pickle", max_batch_size=2)
    >>> fingerprint(small) == fingerprint(SklearnModelHandlerNumpy("a.pickle"))
    True
    >>> fingerprint(small) == fingerprint(SklearnModelHandlerNumpy("b.pickle"))
    False

    Args:
        handler: A handler. Keys that are added to its results have no effect.
        *more: Other values that must be equal.
    """
    while isinstance(handler, DelegatingHandler) and handler.loads_model_of_inner:
        if per_key_mappings(handler):
            break
        [handler] = handler.inner_handlers()
    try:
        content = to_stable_bytes((handler, more), _describe_model)
    except Exception:  # contains something that only Beam's pickler can write
        content = pickler.dumps((handler, more))
    return hashlib.sha256(content).hexdigest()[:16]


def _describe_model(value: Any) -> Any:
    if not isinstance(value, ModelHandler):
        return None
    return type(value), [
        (name, attribute)
        for name, attribute in sorted(vars(value).items())
        if name not in _OF_CALLS and not name.startswith("_runinference")
    ]


def fingerprint_results(handler: ModelHandler[Any, Any, Any], with_code: bool) -> bytes:
    """Return bytes that are equal for handlers that return the same results, if their models are equal.

    They depend on ``get_result_options`` of the handler.

    Args:
        handler: A handler.
        with_code: Whether the code of classes outside of this library is included.

    Raises:
        OptionError: An option of the handler can't be pickled.
    """

    def describe_results(value: Any) -> Any:
        if not isinstance(value, ModelHandler):
            return None
        kinds = [
            kind
            for kind in type(value).__mro__
            if issubclass(kind, ModelHandler) and not kind.__module__.startswith("runinference.")
        ]
        code = [(get_class_name(kind), get_class_code(kind)) for kind in kinds if with_code]
        return get_class_name(type(value)), code, sorted(value.get_result_options().items())

    try:
        return hashlib.sha256(to_stable_bytes(handler, describe_results)).digest()
    except Exception as error:
        hint = "pass version" if with_code else "override get_result_options() and leave it out"
        raise OptionError(
            f"{type(handler).__name__} has an option or code that can't be pickled ({describe(error, 300)}), and "
            f"therefore can't be part of the keys of a cache. To fix this, {hint}."
        ) from error
