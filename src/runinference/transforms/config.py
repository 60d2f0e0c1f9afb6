"""The configuration of an inference step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runinference.batching.policy import resolve_policy
from runinference.checks import check_int
from runinference.errors import OptionError
from runinference.handlers.error_policy import DeadLetterPolicy, FailFastPolicy
from runinference.handlers.keyed import per_key_mappings
from runinference.serving.current_models import SessionConfig
from runinference.serving.model_watcher import WatchConfig


@dataclass(frozen=True)
class InferenceConfig:
    """The configuration of an inference step.

    Attributes:
        handler: Loads and calls the model.
        inference_args: Arguments for each call.
        namespace: The namespace of the metrics; None for the handler's.
        errors: Handles batches that fail.
        session: How models are loaded and called.
        load_in_setup: Whether to load the model before the first element.
        watch: Where new model files appear; None if the step does not watch for any.
    """

    handler: Any
    inference_args: dict[str, Any] | None
    namespace: str | None
    errors: FailFastPolicy | DeadLetterPolicy
    session: SessionConfig
    load_in_setup: bool
    watch: WatchConfig | None = None


def validate_handler(handler: Any) -> None:
    """Raise `OptionError` if a handler is a class, or has no ``load_model`` or no ``run_inference``."""
    if isinstance(handler, type):
        raise OptionError(
            f"model_handler is the class {handler.__name__}. To fix this, pass an instance: "
            f"{handler.__name__}(...)."
        )
    missing = [name for name in ("load_model", "run_inference") if not hasattr(handler, name)]
    if missing:
        raise OptionError(
            f"model_handler is a {type(handler).__name__} without {' and '.join(missing)}. To fix this, pass a "
            "ModelHandler, such as SklearnModelHandlerNumpy(model_uri=...)."
        )
    # The values of Beam's handlers, and of subclasses that override these methods, aren't checked before.
    for each in (*_get_inner_handlers(handler), handler):
        resolve_policy(each)
        copies = each.model_copies()
        check_int("The result of model_copies()", copies)
        if copies > 1 and not each.share_model_across_processes():
            raise OptionError(
                f"{type(each).__name__}.model_copies() returns {copies}, which only applies to a model that "
                "processes share. To fix this, also return True from share_model_across_processes(), or pass "
                "model_copies to the constructor."
            )


def validate_model_updates(handler: Any) -> None:
    """Raise `OptionError` if a handler ignores model updates, because it doesn't define ``update_model_path``."""
    for each in _get_inner_handlers(handler) or [handler]:
        method = getattr(type(each), "update_model_path", None)
        # The base classes of this library and of Beam have methods of this name, which do nothing.
        is_base = getattr(method, "__qualname__", "") == "ModelHandler.update_model_path"
        if is_base and getattr(each, "_path_attribute", None) is None:
            raise OptionError(
                f"{type(each).__name__} ignores new models, because it doesn't define update_model_path(). To fix "
                "this, store the path there, and load the model from it in load_model()."
            )


def _get_inner_handlers(handler: Any) -> list[Any]:
    """Return the handlers that a wrapper for keys contains."""
    wrapped = getattr(handler, "_unkeyed", None)  # Beam's wrappers use this name, too
    mapped = [mapping.mh for mapping in per_key_mappings(handler)]
    inner = mapped or ([] if wrapped is None else [wrapped])
    return [leaf for each in inner for leaf in _get_inner_handlers(each) or [each]]
