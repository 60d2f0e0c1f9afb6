"""The key of elements that may share a batch across bundles."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import apache_beam as beam

from runinference.serving.routing import make_router
from runinference.transforms.side_inputs import SideInputEncoder

_PROCESS = uuid.uuid4().hex


class ElementWithWindow(NamedTuple):
    """An element that waits in the global window, because its own window may merge with others.

    Attributes:
        element: The element.
        window: Its window.
        side_inputs: The encoded side inputs of its window.
    """

    element: Any
    window: Any
    side_inputs: bytes | None


class AssignShardKey(beam.DoFn):  # type: ignore[misc]
    """Add the same key to elements that may share a batch: those of a process, a model and a length bucket.

    Args:
        handler: The handler of the step.
        keep_windows: Whether to emit `ElementWithWindow`.
    """

    def __init__(self, handler: Any, keep_windows: bool = False) -> None:
        self._handler = handler
        self._keep_windows = keep_windows

    def setup(self) -> None:
        self._router = make_router(self._handler)
        self._side_inputs = SideInputEncoder()

    def process(
        self,
        element: Any,
        window: Any = beam.DoFn.WindowParam,
        update: Any = None,
        arguments: Any = None,
    ) -> Iterable[tuple[str, Any]]:
        try:
            version = self._router.route(element)
            key = f"{version.name}/{version.policy.bucket(element)}"
        except Exception:  # raised again by BufferedInferDoFn, which handles it
            key = ""
        if self._keep_windows:
            element = ElementWithWindow(
                element, window, self._side_inputs.encode(update, arguments)
            )
        return [(f"{_PROCESS}/{key}", element)]
