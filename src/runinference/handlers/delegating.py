"""The base of handlers that wrap another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import Self

from runinference.caching.memory_budget import estimate_model_bytes
from runinference.collate.unbatch import get_list_output
from runinference.handlers.call import RunsInParts, runs_in_parts
from runinference.handlers.compute_turn import CallOverlap, get_call_overlap
from runinference.handlers.model_handler import ModelHandler, ModelHandlerLike
from runinference.handlers.model_per_key import count_path_updates


class DelegatingHandler(RunsInParts, ModelHandler[Any, Any, Any]):
    """A handler that wraps another one, and delegates to it what a subclass doesn't define.

    Args:
        unkeyed: The wrapped handler: a ``ModelHandler``, or any object with the methods of Beam's class.
    """

    def __init__(self, unkeyed: ModelHandlerLike) -> None:
        self._unkeyed: Any = unkeyed  # Beam's wrappers use this name, too
        self._env_vars = getattr(unkeyed, "_env_vars", {})
        self._max_batch_bytes = getattr(unkeyed, "_max_batch_bytes", None)
        self._list_output = get_list_output(unkeyed)

    def inner_handlers(self) -> list[ModelHandlerLike]:
        """Return the wrapped handler, or the handlers of all mappings."""
        return [self._unkeyed]

    def map_inner(self, function: Callable[[Any], Any]) -> Self:
        """Return a copy that wraps ``function(handler)`` instead of each wrapped handler."""
        return self._replace(_unkeyed=function(self._unkeyed))

    @property
    def loads_model_of_inner(self) -> bool:
        """Whether ``load_model`` returns the model of the wrapped handler as it is."""
        return True

    @property
    def runs_in_parts(self) -> bool:
        return runs_in_parts(self._unkeyed)

    def load_model(self) -> Any:
        return self._unkeyed.load_model()

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return int(self._unkeyed.get_num_bytes(batch))

    def get_model_bytes(self, model: Any) -> int:
        return estimate_model_bytes(self._unkeyed, model)

    def get_metrics_namespace(self) -> str:
        return str(self._unkeyed.get_metrics_namespace())

    def get_resource_hints(self) -> dict[str, Any]:
        return dict(self._unkeyed.get_resource_hints())

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        self._unkeyed.validate_inference_args(inference_args)

    def get_model_files(self) -> Sequence[str] | None:
        found: Sequence[str] | None = self._unkeyed.get_model_files()
        return found

    def get_result_types(self) -> Sequence[type | str]:
        types: Sequence[type | str] = self._unkeyed.get_result_types()
        return types

    def update_model_path(self, model_path: str | None = None) -> None:
        self._unkeyed.update_model_path(model_path=model_path)

    def set_environment_vars(self) -> None:
        self._unkeyed.set_environment_vars()

    def share_model_across_processes(self) -> bool:
        return bool(self._unkeyed.share_model_across_processes())

    def model_copies(self) -> int:
        return int(self._unkeyed.model_copies())

    def may_modify_examples(self) -> bool:
        return bool(getattr(self._unkeyed, "may_modify_examples", lambda: True)())

    def count_path_updates(self) -> int:
        return self._n_path_updates + count_path_updates([self._unkeyed])

    def call_overlap(self) -> CallOverlap:
        return get_call_overlap(self._unkeyed)

    def may_join_threads(self) -> bool:
        return bool(getattr(self._unkeyed, "may_join_threads", bool)())

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        return bool(self._unkeyed.override_metrics(metrics_namespace))

    def should_garbage_collect_on_timeout(self) -> bool:
        return bool(self._unkeyed.should_garbage_collect_on_timeout())
