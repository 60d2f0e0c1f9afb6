"""Calls a handler on a batch: one result for each element, or one for all where the batch is an element itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runinference.collate.unbatch import batch_length, unbatch
from runinference.collate.unsplit import returns_unsplit_results, run_unsplit
from runinference.errors import Part, parts_of, tell_parts


def run_batch(
    handler: Any, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None
) -> list[Any]:
    """Calls a handler on a batch; one result for each element, consumed here if they come lazily.

    Where the handler gives whole results, the batch is one element of the pipeline, and there is one result.

    Raises:
        ResultMismatchError: The handler gave more or fewer results than the batch has elements.
        OutOfMemoryError: Memory did not suffice for an element that is a whole batch.
    """
    if returns_unsplit_results(handler):
        return [run_unsplit(handler, batch, model, inference_args)]
    size = batch_length(batch)
    try:
        output = handler.run_inference(
            batch, model, dict(inference_args) if inference_args else inference_args
        )
        return list(output) if size is None else unbatch(output, size)
    except Exception as error:
        # Who calls another handler may have sorted the batch, or change its results.
        if parts_of(error) and not getattr(handler, "tells_parts", False):
            tell_parts(error, [Part(size or 1, None, error)])
        raise
