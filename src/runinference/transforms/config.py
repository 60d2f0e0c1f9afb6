"""The configuration of an inference step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runinference.batching.policy import resolve_policy
from runinference.checks import check_int
from runinference.errors import OptionError
from runinference.handlers.error_policy import DeadLetterPolicy, FailFastPolicy
from runinference.handlers.keyed import per_key_mappings
from runinference.serving.model_watcher import WatchConfig
from runinference.serving.session import SessionConfig


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
    wrapped = getattr(handler, "_unkeyed", None)  # Beam's wrappers use this name, too
    inner = [mapping.mh for mapping in per_key_mappings(handler)] or ([wrapped] if wrapped else [])
    for each in (*inner, handler):
        resolve_policy(each)
        check_int("The result of model_copies()", each.model_copies())
