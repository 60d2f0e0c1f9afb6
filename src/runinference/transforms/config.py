"""What a step of inference is made of: values, chosen when the transform is applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runinference.handlers.error_policy import DeadLetterPolicy, FailFastPolicy
from runinference.serving.model_watcher import WatchConfig
from runinference.serving.placement import Placement, ProcessShared


@dataclass(frozen=True)
class InferenceConfig:
    """The settings of a step.

    Attributes:
        handler: Says how to load and call the model.
        inference_args: For each call.
        namespace: Of the metrics; None for the handler's.
        clock: Has ``time_ns()``.
        errors: What happens when a batch fails.
        timeout: Seconds for loading a model and for a call; None for no limit.
        place: Where a model is loaded.
        models: Finds the models of this process.
        tag: Before the names of models on a cache that several steps share.
        holds: Whether models are kept until the bundle ends.
        joins: Whether small batches of several threads may share a call.
        early: Whether to load the model before the first element.
        watch: Where new models appear; None where none do.
    """

    handler: Any
    inference_args: dict[str, Any] | None
    namespace: str | None
    clock: Any
    errors: FailFastPolicy | DeadLetterPolicy
    timeout: float | None
    place: Placement
    models: ProcessShared
    tag: str
    holds: bool
    joins: bool
    early: bool
    watch: WatchConfig | None = None
