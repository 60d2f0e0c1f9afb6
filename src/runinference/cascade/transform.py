"""The ``Cascade`` transform: two ``RunInference`` transforms, and a check of some of the cheap answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam

from runinference.cascade.carry import PassThroughStep, carry_itself
from runinference.cascade.dofns import (
    EXPENSIVE,
    FAILED_CHECK,
    Compare,
    CountFailedChecks,
    Request,
    Route,
    is_check,
    is_no_check,
)
from runinference.cascade.threshold import CascadeThreshold
from runinference.checks import check_int, check_mapping, check_number, check_text
from runinference.errors import OptionError, describe_value
from runinference.handlers.model_handler import ModelHandlerLike
from runinference.handlers.options import KeywordsChecked
from runinference.handlers.row_handler import with_rows
from runinference.handlers.row_options import RowOptions
from runinference.transforms.coders import result_type
from runinference.transforms.dead_letters import RunInferenceDLQ
from runinference.transforms.row_types import (
    find_pair_types,
    get_fields,
    make_row_type,
    with_input_type,
)


class CascadeDLQ(NamedTuple):
    """The dead-letter queues of both steps of a cascade.

    Attributes:
        cheap: The elements for which the cheap model failed. The last PCollection of ``failed_postprocessing``
            contains the results for which the confidence function failed.
        expensive: The elements for which the expensive model failed to answer. Failed checks aren't included.
    """

    cheap: RunInferenceDLQ
    expensive: RunInferenceDLQ


class Cascade(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Answer each element with a cheap model if it is confident enough, and with an expensive model otherwise.

    Each result has the key, window and timestamp of its element. The ``model_id`` of a ``PredictionResult`` is
    the ``model_id`` of the model that answered. If a handler doesn't set one, it is ``"cheap"`` or
    ``"expensive"``. For rows, ``model_column`` adds a column with ``"cheap"`` or ``"expensive"``.

    The expensive model also checks some of the cheap answers. A check never changes a result. If the agreement
    is significantly below the requested rate, a warning is logged, and the metric ``cascade_alerts`` is increased.

    >>> from runinference import samples
    >>> from runinference.cascade import CascadeThreshold, max_probability, same_class
    >>> from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy
    >>> def probabilities(model, batch, inference_args=None):
    ...     return model.predict_proba(batch)
    >>> cheap = SklearnModelHandlerNumpy(samples.digits_classifier(), inference_fn=probabilities)
    >>> expensive = SklearnModelHandlerNumpy(samples.digits_forest(), ModelFileType.JOBLIB)
    >>> threshold = CascadeThreshold(0.9, confidence=max_probability, agrees=same_class)
    >>> images, _ = samples.held_out_digits()
    >>> with beam.Pipeline() as pipeline:
    ...     results = pipeline | beam.Create(images[1:2]) | Cascade(cheap, expensive, threshold)
    ...     _ = results | beam.Map(lambda result: print(same_class(result.inference, 4)))
    True
    """

    def __init__(
        self,
        cheap: ModelHandlerLike,
        expensive: ModelHandlerLike,
        threshold: CascadeThreshold,
        *,
        check_fraction: float = 0.05,
        cheap_args: Mapping[str, Any] | None = None,
        expensive_args: Mapping[str, Any] | None = None,
        model_column: str | None = None,
        metrics_namespace: str = "cascade",
        seed: int = 0,
    ) -> None:
        """Create the transform.

        Args:
            cheap: The handler of the cheap model.
            expensive: The handler of the expensive model. It takes the same elements, with or without keys.
            threshold: The result of ``learn_cascade``, or a ``CascadeThreshold`` that you choose.
            check_fraction: The share of the cheap answers that the expensive model checks, from 0 to 1.
            cheap_args: Keyword arguments of ``RunInference`` for the step of the cheap model, such as
                ``{"inference_args": {...}, "metrics_namespace": "cheap"}``.
            expensive_args: The same for the step of the expensive model.
            model_column: For rows, the name of a column that contains the model that answered: ``"cheap"`` or
                ``"expensive"``. By default, there is no such column.
            metrics_namespace: The namespace of the metrics of the cascade. The metrics of each step have the
                namespace of its handler.
            seed: The seed of the choice of elements to check. The choice depends on the element and its
                timestamp, so that a retry checks the same elements.

        Raises:
            OptionError: A value is out of range, or the elements of a handler are batches.
        """
        super().__init__()
        if not isinstance(threshold, CascadeThreshold):
            raise OptionError(
                f"threshold must be a CascadeThreshold, but is {describe_value(threshold, 60)}. To fix this, pass "
                "the result of learn_cascade, or CascadeThreshold(0.9, confidence=max_probability)."
            )
        check_number("check_fraction", check_fraction)
        if check_fraction > 1:
            raise OptionError(f"check_fraction must be from 0 to 1, but is {check_fraction!r}.")
        for name, args in (("cheap_args", cheap_args), ("expensive_args", expensive_args)):
            if args is not None:
                check_mapping(name, args)
        check_text("metrics_namespace", metrics_namespace)
        check_int("seed", seed, 0)
        self._args = dict(cheap_args or {}), dict(expensive_args or {})
        if model_column is not None:
            check_text("model_column", model_column)
            if not all(map(_get_row_options, self._args)):
                raise OptionError(
                    "model_column is for rows. To fix this, pass columns or output in cheap_args and "
                    "expensive_args, or leave model_column out: PredictionResult has a model_id."
                )
        self._model_column = model_column
        self._cheap = PassThroughStep(
            cheap, "cheap", threshold.scores.confidence, model_column=model_column
        )
        self._expensive = PassThroughStep(expensive, "expensive", model_column=model_column)
        self._handlers: tuple[Any, Any] = cheap, expensive
        self._infer = (
            self._cheap.transform(self._args[0]),
            self._expensive.transform(self._args[1]),
        )
        self._threshold = threshold
        self._check_fraction = check_fraction
        self._namespace = metrics_namespace
        self._seed = seed
        self._caught: Any = None  # with exception handling, the errors that become dead letters

    def with_exception_handling(
        self,
        *,
        exc_class: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        use_subprocess: bool = False,
        threshold: float = 1,
        timeout: float | None = None,
    ) -> Cascade:
        """Return a copy that outputs dead letters for failing elements instead of failing the pipeline.

        The copy outputs a tuple: the PCollection of results, and a
        [CascadeDLQ][runinference.cascade.CascadeDLQ]. An element for which the cheap model fails isn't sent to the
        expensive model. If a check fails, the cheap answer stays the result.

        Args:
            exc_class: The errors that become dead letters, see ``RunInference.with_exception_handling``.
            use_subprocess: Whether each model runs in a subprocess.
            threshold: Maximum share of elements that may fail in a step, from 0 to 1.
            timeout: Maximum time in seconds to load a model and call it once. None for no limit.

        Raises:
            OptionError: A value is out of range.
        """
        changed = copy.copy(self)
        cheap, expensive = (
            infer.with_exception_handling(
                exc_class=exc_class,
                use_subprocess=use_subprocess,
                threshold=threshold,
                timeout=timeout,
            )
            for infer in self._infer
        )
        changed._infer = cheap, expensive
        changed._caught = exc_class
        return changed

    def expand(self, elements: beam.PCollection) -> Any:
        if self._threshold.threshold == math.inf:
            requests, answered, cheap_dlq = self._skip_cheap(elements)
        else:
            requests, answered, cheap_dlq = self._answer_cheaply(elements)
        results, failed_checks, dlq = requests | "Expensive model" >> self._infer[1], [], None
        if self._caught is not None:
            results, letters = results
            expensive_dlq = self._expensive.read_letters(letters, "Expensive", is_no_check)
            dlq = CascadeDLQ(cheap_dlq, expensive_dlq)
            checks = self._expensive.read_letters(letters, "Checks", is_check)
            failed_checks = [*checks.failed_preprocessing, checks.failed_inferences]
            failed_checks += checks.failed_postprocessing
        caught = () if self._caught is None else self._caught
        compare = Compare((self._cheap, self._expensive), self._threshold, self._namespace, caught)
        compared = results | "Compare" >> beam.ParDo(compare).with_outputs(
            FAILED_CHECK, main="results", allow_unknown_tags=False
        )
        count = beam.ParDo(CountFailedChecks(self._namespace))
        failed_checks = (
            *failed_checks,
            compared[FAILED_CHECK],
        ) | "Failed checks" >> beam.Flatten()
        _ = failed_checks | "Count failed checks" >> count
        kind = self._get_result_type(elements.element_type)
        outputs = (*answered, compared.results) | "Results" >> beam.Flatten()
        outputs = outputs | "Typed" >> beam.Map(_get_same).with_output_types(kind)
        return outputs if dlq is None else (outputs, dlq)

    def _skip_cheap(self, elements: beam.PCollection) -> Any:
        """Return requests for all elements, without results and dead letters of the cheap model."""
        requests = elements | "Request" >> beam.ParDo(Request(self._namespace))
        if self._caught is None:
            return requests, [], None
        nothing = elements | "Nothing" >> beam.Filter(lambda element: False)
        return requests, [], self._cheap.empty_dead_letters(nothing)

    def _answer_cheaply(self, elements: beam.PCollection) -> Any:
        """Return requests to the expensive model, the results of the cheap one, and its dead letters."""
        carry = beam.Map(partial(carry_itself, self._cheap.may_modify_examples))
        results, dlq = elements | "Keep elements" >> carry | "Cheap model" >> self._infer[0], None
        if self._caught is not None:
            results, letters = results
            dlq = self._cheap.read_letters(letters, "Cheap")
        route = Route(
            self._cheap, self._threshold, self._check_fraction, self._seed, self._namespace
        )
        routed = results | "Route" >> beam.ParDo(route).with_outputs(
            EXPENSIVE, main="cheap", allow_unknown_tags=False
        )
        return routed[EXPENSIVE], [routed.cheap], dlq

    def _get_result_type(self, element_type: Any) -> Any:
        """Return the type of results if it is known and both models have the same, for their coder."""
        kinds = [
            _get_result_type(handler, options, element_type, self._model_column)
            for handler, options in zip(self._handlers, self._args, strict=True)
        ]
        return kinds[0] if kinds[0] == kinds[1] else Any


def _get_row_options(options: Mapping[str, Any]) -> RowOptions | None:
    names = ("columns", "output", "keep", "inference_args", "probabilities")
    return RowOptions.create(*map(options.get, names))


def _get_result_type(
    handler: Any, options: Mapping[str, Any], element_type: Any, model_column: str | None
) -> Any:
    if handler.get_preprocess_fns() or handler.get_postprocess_fns():
        return Any
    row_options = _get_row_options(options)
    if row_options is not None:
        handler = with_input_type(with_rows(handler, row_options), element_type)
    kind = result_type(handler, element_type)
    if model_column is None:
        return kind
    pair = find_pair_types(kind)
    fields = get_fields(pair[1] if pair else kind)
    if fields is None:
        return Any
    if model_column in fields:
        raise OptionError(
            f"Results already have a column {model_column!r}. To fix this, choose another name with model_column."
        )
    row_type = make_row_type({**fields, model_column: str})
    return beam.typehints.Tuple[pair[0], row_type] if pair else row_type


def _get_same(result: Any) -> Any:
    return result
