"""Model placements: how a model is loaded in this process, in a subprocess or in a shared process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from runinference.caching.memory_budget import estimate_model_bytes
from runinference.errors import ChildDiedError
from runinference.handlers.call import run_batch_in_parts
from runinference.serving.routing import ModelVersion


class Model(Protocol):
    """A loaded model, in any process.

    Attributes:
        n_bytes: The memory that the model takes.
        ends_on_terminate: Whether ``terminate`` ends calls that hang, so that their model cannot be kept.
    """

    n_bytes: int
    ends_on_terminate: bool

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        """Return one result for each element of a batch.

        Raises:
            ModelGoneError: The process of the model ended before it began this call.
            ChildDiedError: The process of the model ended during this call, which may be the reason.
        """

    def close(self) -> None:
        """Free the model after its last call."""

    def terminate(self) -> None:
        """Free what can be freed while a call hangs."""

    def is_running(self, thread_id: int | None) -> bool:
        """Return whether a thread's call is running, and not queued behind another thread's call."""


#: Loads a model. The second argument is called with a model that can be terminated while it is loaded.
Placement = Callable[[ModelVersion, Callable[[Model], None]], Model]


class ModelGoneError(ChildDiedError):
    """The process of a model ended before a call began, so that the call can be repeated with a new model.

    Attributes:
        ended_in_call: Whether another call is known to have ended the process.
    """

    ended_in_call = False


class InProcessModel:
    """A model that all threads of this process share."""

    ends_on_terminate = False

    def __init__(self, handler: Any) -> None:
        handler.set_environment_vars()
        self._model = handler.load_model()
        self.n_bytes = estimate_model_bytes(handler, self._model)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return run_batch_in_parts(handler, batch, self._model, inference_args)

    def close(self) -> None:
        self._model = None

    def terminate(self) -> None:
        """Do nothing: a thread can't be ended, and it refers to the model until its call returns."""

    def is_running(self, thread_id: int | None) -> bool:
        return True
