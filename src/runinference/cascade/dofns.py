"""The DoFns of a cascade, which choose the model, compare answers, and count metrics."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from runinference.cascade.agreement_check import AgreementCheck
from runinference.cascade.carry import PassThroughStep
from runinference.cascade.threshold import CascadeThreshold
from runinference.errors import describe, describe_value
from runinference.transforms.coders import PredictionResultCoder

_LOGGER = logging.getLogger(__name__)

#: Encodes equal arrays and tensors as equal bytes.
_ELEMENT_CODER = PredictionResultCoder()

EXPENSIVE, FAILED_CHECK = "expensive", "failed check"


class Origin(NamedTuple):
    """Why an element was sent to the expensive model.

    Attributes:
        is_check: Whether the cheap model has answered already.
        cheap_result: Its result.
    """

    is_check: bool
    cheap_result: Any = None


def is_check(origin: Origin) -> bool:
    return origin.is_check


def is_no_check(origin: Origin) -> bool:
    return not origin.is_check


class Route(beam.DoFn):  # type: ignore[misc]
    """Emit the results of the cheap model that are accepted, and requests to the expensive one."""

    def __init__(
        self,
        step: PassThroughStep,
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
            yield TaggedOutput(EXPENSIVE, (Origin(is_check=False), original))
            return
        self._cheap.inc()
        is_checked = self._is_checked(original, timestamp)
        self._savings.update(0 if is_checked else 100)
        yield self._step.name_model(result, "cheap")
        if is_checked:
            yield TaggedOutput(EXPENSIVE, (Origin(True, result), original))

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


class Request(beam.DoFn):  # type: ignore[misc]
    """Emit a request to the expensive model for each element."""

    def __init__(self, namespace: str) -> None:
        self._expensive = Metrics.counter(namespace, "cascade_expensive")
        self._savings = Metrics.distribution(namespace, "cascade_observed_savings_percent")

    def process(self, element: Any) -> Iterator[Any]:
        self._expensive.inc()
        self._savings.update(0)
        yield Origin(is_check=False), element


class CountFailedChecks(beam.DoFn):  # type: ignore[misc]
    """Count the checks for which the expensive model failed."""

    def __init__(self, namespace: str) -> None:
        self._failed = Metrics.counter(namespace, "cascade_failed_checks")

    def process(self, letter: Any) -> None:
        self._failed.inc()


class Compare(beam.DoFn):  # type: ignore[misc]
    """Emit the results of the expensive model, and compare those of checks with the cheap answer."""

    def __init__(
        self,
        steps: tuple[PassThroughStep, PassThroughStep],
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
            yield self._expensive.name_model(result, "expensive")
            return
        pair = self._cheap.drop_key(origin.cheap_result), self._expensive.drop_key(result)
        try:
            agreed = self._scores.agree(*pair)
        except self._caught as error:
            _LOGGER.warning("The agreement function failed: %s", describe(error, 1_000))
            yield TaggedOutput(FAILED_CHECK, None)
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
