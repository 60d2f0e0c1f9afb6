"""RunInference: elements are prepared, gathered into batches, run through a model, split and finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import apache_beam as beam

from runinference.coding import result_type
from runinference.infer import Infer, InferPrebatched
from runinference.options import refuse_unknown


class RunInference(beam.PTransform):  # type: ignore[misc]
    """Turns a PCollection of examples into one of predictions, one for each, with a model.

    Each prediction has the window and timestamp of its example.

    >>> from runinference.sklearn_inference import SklearnModelHandlerNumpy
    >>> from runinference import samples
    >>> handler = SklearnModelHandlerNumpy(model_uri=samples.digits_classifier())
    >>> images, labels = samples.held_out_digits()
    >>> with beam.Pipeline() as pipeline:
    ...     _ = pipeline | beam.Create(images[:1]) | RunInference(handler) | beam.Map(lambda r: print(r.inference))
    2
    """

    def __new__(cls, *args: Any, **options: Any) -> RunInference:
        refuse_unknown(cls, options)
        return cast(RunInference, super().__new__(cls))

    def __init__(
        self,
        model_handler: Any,
        clock: Any = time,
        inference_args: dict[str, Any] | None = None,
        metrics_namespace: str | None = None,
    ) -> None:
        """Takes a handler, and what all its calls have in common.

        Args:
            model_handler: Says how to load the model and how to call it. Any object with the methods of
                Beam's ``ModelHandler`` will do.
            clock: Has ``time_ns()``; for tests of your own.
            inference_args: Arguments for the model's call, the same for all elements.
            metrics_namespace: The namespace of the metrics; by default the handler's.

        Raises:
            UnknownOptionError: A keyword is not known; the message names the nearest one.
        """
        super().__init__()
        self._model_handler = model_handler
        self._clock = clock
        self._inference_args = inference_args
        self._metrics_namespace = metrics_namespace

    def expand(self, examples: beam.PCollection) -> beam.PCollection:
        handler = self._model_handler
        handler.validate_inference_args(self._inference_args)
        prepared = _apply(examples, handler.get_preprocess_fns(), "Preprocess")
        infer = self._infer().with_output_types(result_type(handler, prepared.element_type))
        results = prepared | "BeamML_RunInference" >> infer
        return _apply(results, handler.get_postprocess_fns(), "Postprocess")

    def _infer(self) -> beam.PTransform:
        infer = beam.ParDo(self._infer_do_fn())
        return infer.with_resource_hints(**self._model_handler.get_resource_hints())

    def _infer_do_fn(self) -> Infer:
        handler = self._model_handler
        kind = InferPrebatched if handler.should_skip_batching() else Infer
        return kind(handler, self._inference_args, self._metrics_namespace, self._clock)


def _apply(
    elements: beam.PCollection, functions: Iterable[Callable[[Any], Any]], step: str
) -> beam.PCollection:
    for index, function in enumerate(functions):
        elements = elements | f"BeamML_RunInference_{step}-{index}" >> beam.Map(function)
    return elements
