"""The cascade as a transform: two steps of RunInference, and a check of a part of the cheap answers."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from runinference.cascade.bounds import tail_probability
from runinference.cascade.carry import CarryingStep, carry_itself
from runinference.cascade.threshold import CascadeThreshold
from runinference.checks import check_int, check_mapping, check_number, check_text
from runinference.errors import OptionError, describe, describe_value
from runinference.handlers.model_handler import ModelHandlerLike
from runinference.handlers.options import KeywordsChecked
from runinference.handlers.row_handler import with_rows
from runinference.handlers.row_options import RowOptions
from runinference.transforms.coders import PredictionResultCoder, result_type
from runinference.transforms.dead_letters import RunInferenceDLQ
from runinference.transforms.row_types import with_input_type

_LOGGER = logging.getLogger(__name__)

#: Encodes equal arrays and tensors as equal bytes.
_ELEMENT_CODER = PredictionResultCoder()

_EXPENSIVE, _FAILED_CHECK = "expensive", "failed check"


class CascadeDLQ(NamedTuple):
    """The dead-letter queues of both steps of a cascade.

    Attributes:
        cheap: The elements for which the cheap model failed. The last PCollection of ``failed_postprocessing`` has
            the results for which the confidence function failed.
        expensive: The elements for which the expensive model failed, except for those that were only checked.
    """

    cheap: RunInferenceDLQ
    expensive: RunInferenceDLQ


class Cascade(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Answer each element with a cheap model if it is sure enough, and with an expensive model otherwise.

    Each result has the key, window and timestamp of its element. The ``model_id`` of a ``PredictionResult`` is
    that of the model that answered. If a handler sets none, it is ``"cheap"`` or ``"expensive"``. Rows have none.

    The expensive model also checks a part of the cheap answers. A check never changes a result. If the agreement
    is significantly below the requested rate, a warning is logged, and counted in the metric ``cascade_alerts``.

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
        metrics_namespace: str = "cascade",
        seed: int = 0,
    ) -> None:
        """Create the transform.

        Args:
            cheap: The handler of the cheap model.
            expensive: The handler of the expensive model. It takes the same elements, with or without keys.
            threshold: What ``learn_cascade`` returned, or a threshold of your own choice.
            check_fraction: The share of the cheap answers that the expensive model checks, from 0 to 1.
            cheap_args: Keyword arguments of ``RunInference`` for the step of the cheap model, such as
                ``{"inference_args": {...}, "metrics_namespace": "cheap"}``.
            expensive_args: The same for the step of the expensive model.
            metrics_namespace: The namespace of the metrics of the cascade. The metrics of both steps have the
                namespaces of their handlers.
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
        self._cheap = CarryingStep(cheap, "cheap", threshold.scores.confidence)
        self._expensive = CarryingStep(expensive, "expensive")
        self._handlers: tuple[Any, Any] = cheap, expensive
        self._args = dict(cheap_args or {}), dict(expensive_args or {})
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
            expensive_dlq = self._expensive.read_letters(letters, "Expensive", _is_no_check)
            dlq = CascadeDLQ(cheap_dlq, expensive_dlq)
            checks = self._expensive.read_letters(letters, "Checks", _is_check)
            failed_checks = [*checks.failed_preprocessing, checks.failed_inferences]
            failed_checks += checks.failed_postprocessing
        caught = () if self._caught is None else self._caught
        compare = _Compare((self._cheap, self._expensive), self._threshold, self._namespace, caught)
        compared = results | "Compare" >> beam.ParDo(compare).with_outputs(
            _FAILED_CHECK, main="results", allow_unknown_tags=False
        )
        count = beam.ParDo(_CountFailedChecks(self._namespace))
        failed_checks = (
            *failed_checks,
            compared[_FAILED_CHECK],
        ) | "Failed checks" >> beam.Flatten()
        _ = failed_checks | "Count failed checks" >> count
        kind = self._get_result_type(elements.element_type)
        outputs = (*answered, compared.results) | "Results" >> beam.Flatten()
        outputs = outputs | "Typed" >> beam.Map(_get_same).with_output_types(kind)
        return outputs if dlq is None else (outputs, dlq)

    def _skip_cheap(self, elements: beam.PCollection) -> Any:
        """Return requests for all elements, without results and dead letters of the cheap model."""
        requests = elements | "Request" >> beam.ParDo(_Request(self._namespace))
        if self._caught is None:
            return requests, [], None
        nothing = elements | "Nothing" >> beam.Filter(lambda element: False)
        return requests, [], self._cheap.no_letters(nothing)

    def _answer_cheaply(self, elements: beam.PCollection) -> Any:
        """Return requests to the expensive model, the results of the cheap one, and its dead letters."""
        carry = beam.Map(partial(carry_itself, self._cheap.may_modify_examples))
        results, dlq = elements | "Keep elements" >> carry | "Cheap model" >> self._infer[0], None
        if self._caught is not None:
            results, letters = results
            dlq = self._cheap.read_letters(letters, "Cheap")
        route = _Route(
            self._cheap, self._threshold, self._check_fraction, self._seed, self._namespace
        )
        routed = results | "Route" >> beam.ParDo(route).with_outputs(
            _EXPENSIVE, main="cheap", allow_unknown_tags=False
        )
        return routed[_EXPENSIVE], [routed.cheap], dlq

    def _get_result_type(self, element_type: Any) -> Any:
        """Return the type of results if it is known and both models have the same, for their coder."""
        kinds = [
            _get_result_type(handler, options, element_type)
            for handler, options in zip(self._handlers, self._args, strict=True)
        ]
        return kinds[0] if kinds[0] == kinds[1] else Any


def _get_result_type(handler: Any, options: Mapping[str, Any], element_type: Any) -> Any:
    if handler.get_preprocess_fns() or handler.get_postprocess_fns():
        return Any
    names = ("columns", "output", "keep", "inference_args", "probabilities")
    row_options = RowOptions.create(*map(options.get, names))
    if row_options is not None:
        handler = with_input_type(with_rows(handler, row_options), element_type)
    return result_type(handler, element_type)


class _Origin(NamedTuple):
    """What the step of the expensive model carries.

    Attributes:
        is_check: Whether the cheap model has answered already.
        cheap_result: Its result.
    """

    is_check: bool
    cheap_result: Any = None


def _is_check(origin: _Origin) -> bool:
    return origin.is_check


def _is_no_check(origin: _Origin) -> bool:
    return not origin.is_check


def _get_same(result: Any) -> Any:
    return result


class _Route(beam.DoFn):  # type: ignore[misc]
    """Emit the results of the cheap model that are accepted, and requests to the expensive one."""

    def __init__(
        self,
        step: CarryingStep,
        threshold: CascadeThreshold,
        check_fraction: float,
        seed: int,
        namespace: str,
    ) -> None:
        self._step = step
        self._threshold = threshold
        self._check_fraction = check_fraction
        self._salt = str(seed).encode()
        counter = partial(Metrics.counter, namespace)
        self._cheap, self._expensive = counter("cascade_cheap"), counter("cascade_expensive")
        self._savings = Metrics.distribution(namespace, "cascade_observed_savings_percent")
        self._expected = [
            (Metrics.gauge(namespace, f"cascade_expected_{name}_percent"), share)
            for name, share in (
                ("agreement", threshold.expected_agreement),
                ("savings", _expected_savings(threshold, check_fraction)),
            )
            if share is not None
        ]

    def process(self, element: Any, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        original, (result, confidence) = element
        for gauge, share in self._expected:
            gauge.set(int(100 * share))
        if not self._threshold.accepts(confidence):
            self._expensive.inc()
            self._savings.update(0)
            yield TaggedOutput(_EXPENSIVE, (_Origin(is_check=False), original))
            return
        self._cheap.inc()
        is_checked = self._is_checked(original, timestamp)
        self._savings.update(0 if is_checked else 100)
        yield self._step.with_model_id(result, "cheap")
        if is_checked:
            yield TaggedOutput(_EXPENSIVE, (_Origin(True, result), original))

    def _is_checked(self, element: Any, timestamp: Any) -> bool:
        if self._check_fraction in (0, 1):
            return bool(self._check_fraction)
        try:
            data = _ELEMENT_CODER.encode(element)
        except Exception:  # only elements that never leave their process can't be encoded
            data = describe_value(element).encode(errors="replace")
        digest = hashlib.blake2b(data + self._salt + str(timestamp.micros).encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "big") < self._check_fraction * 2**64


def _expected_savings(threshold: CascadeThreshold, check_fraction: float) -> float | None:
    savings = threshold.expected_savings
    return None if savings is None else savings * (1 - check_fraction)


class _Request(beam.DoFn):  # type: ignore[misc]
    """Emit a request to the expensive model for each element."""

    def __init__(self, namespace: str) -> None:
        self._expensive = Metrics.counter(namespace, "cascade_expensive")
        self._savings = Metrics.distribution(namespace, "cascade_observed_savings_percent")

    def process(self, element: Any) -> Iterator[Any]:
        self._expensive.inc()
        self._savings.update(0)
        yield _Origin(is_check=False), element


class _CountFailedChecks(beam.DoFn):  # type: ignore[misc]
    """Count the checks for which the expensive model failed."""

    def __init__(self, namespace: str) -> None:
        self._failed = Metrics.counter(namespace, "cascade_failed_checks")

    def process(self, letter: Any) -> None:
        self._failed.inc()


class _Compare(beam.DoFn):  # type: ignore[misc]
    """Emit the results of the expensive model, and compare those of checks with the cheap answer."""

    def __init__(
        self,
        steps: tuple[CarryingStep, CarryingStep],
        threshold: CascadeThreshold,
        namespace: str,
        caught: Any,
    ) -> None:
        self._cheap, self._expensive = steps
        self._scores = threshold.scores
        self._caught = caught
        self._agreement = AgreementCheck(threshold.agreement)
        counter = partial(Metrics.counter, namespace)
        self._checked, self._agreed = counter("cascade_checked"), counter("cascade_agreed")
        self._alerts = counter("cascade_alerts")
        self._percent = Metrics.distribution(namespace, "cascade_observed_agreement_percent")

    def process(self, element: Any) -> Iterator[Any]:
        origin, result = element
        if not origin.is_check:
            yield self._expensive.with_model_id(result, "expensive")
            return
        pair = self._cheap.drop_key(origin.cheap_result), self._expensive.drop_key(result)
        try:
            agreed = self._scores.agree(*pair)
        except self._caught as error:
            _LOGGER.warning("The agreement function failed: %s", describe(error, 1_000))
            yield TaggedOutput(_FAILED_CHECK, None)
        else:
            self._count(agreed)

    def _count(self, agreed: bool) -> None:
        self._checked.inc()
        self._percent.update(100 if agreed else 0)
        if agreed:
            self._agreed.inc()
        if (warning := self._agreement.add(agreed)) is not None:
            self._alerts.inc()
            _LOGGER.warning("%s", warning)


class AgreementCheck:
    """Compare the observed agreement with the requested rate, in consecutive blocks of checks.

    In each block of 1,024 checks, the agreement is tested after 32, 64, 128, and so on. A test warns if an
    agreement this low has a probability of at most 0.001 at the requested rate, so a block without any problem has
    a warning with a probability of at most 0.6 %.

    >>> check = AgreementCheck(0.9)
    >>> warnings = [check.add(agreed=number % 2 == 0) for number in range(32)]
    >>> print(warnings[-1].partition(",")[0])
    The models agree on 16 of the last 32 checked elements (50.0%)

    Args:
        agreement: The requested rate. None for no warnings.
    """

    FIRST, LAST, LEVEL = 32, 1_024, 0.001

    def __init__(self, agreement: float | None) -> None:
        self._agreement = agreement
        self._n = self._n_agreed = 0

    def add(self, agreed: bool) -> str | None:
        """Count a check, and return a warning if the agreement is too low."""
        if self._agreement is None:
            return None
        self._n += 1
        self._n_agreed += agreed
        n, n_agreed, warning = self._n, self._n_agreed, None
        if n >= self.FIRST and n & (n - 1) == 0:
            # At most n_agreed agree: at least n - n_agreed differ.
            p_value = tail_probability(n, n - n_agreed, 1 - self._agreement)
            if p_value <= self.LEVEL:
                warning = (
                    f"The models agree on {n_agreed} of the last {n} checked elements ({n_agreed / n:.1%}), "
                    f"significantly below the requested {self._agreement:.1%} (p = {p_value:.2g}). To fix this, "
                    "learn the threshold again, from a sample of recent elements."
                )
        if n == self.LAST:
            self._n = self._n_agreed = 0
        return warning
