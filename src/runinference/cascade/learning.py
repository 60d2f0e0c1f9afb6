"""Learn the threshold of a cascade from a sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from runinference.cascade.agreement import Scores, equal_predictions, same_class
from runinference.cascade.bounds import choose_candidates, find_lowest, lower_bound, sample_size
from runinference.cascade.carry import PassThroughStep, carry_itself
from runinference.cascade.threshold import CascadeThreshold, check_rate
from runinference.checks import check_callable, check_elements, check_mapping
from runinference.errors import (
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    ModelUnavailableError,
    OptionError,
    describe,
    describe_value,
)
from runinference.handlers.call import runs_in_parts
from runinference.handlers.model_handler import ModelHandlerLike

_LOGGER = logging.getLogger(__name__)

#: Number of elements in a call of ``predict``. If one fails, ``predict`` is called again for each element.
_CHUNK = 64

#: The number of concurrent requests to an endpoint.
_REQUESTS = 8

#: Errors that all elements have in common.
_FATAL = (OptionError, ModelNotFoundError, ModelLoadError, ModelUnavailableError, ImportError)


def learn_cascade(
    cheap: ModelHandlerLike,
    expensive: ModelHandlerLike,
    sample: Iterable[Any],
    *,
    confidence: Callable[[Any], Any],
    agrees: Callable[[Any, Any], Any] = equal_predictions,
    agreement: float = 0.95,
    error_probability: float = 0.05,
    cheap_args: Mapping[str, Any] | None = None,
    expensive_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> CascadeThreshold:
    """Learn the lowest confidence above which a cheap model agrees with an expensive one at a requested rate.

    The guarantee: among the elements that the cheap model answers, the rate of agreement is at least
    ``agreement``, except with the probability ``error_probability``. It holds for elements that are drawn from the
    same distribution as the sample, independently of each other.

    The method is Learn then Test (Angelopoulos et al. 2021, <https://arxiv.org/abs/2110.01052>): a fifth of the
    sample, chosen at random, determines up to 20 thresholds to test. Only the cheap model is called for it. The
    other elements test them with exact binomial tests, whose error probabilities add up to ``error_probability``
    (fallback procedure, Wiens 2003). If no threshold passes its test, the expensive model answers all elements.

    >>> from runinference import samples
    >>> from runinference.cascade import max_probability, same_class
    >>> from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy
    >>> def probabilities(model, batch, inference_args=None):
    ...     return model.predict_proba(batch)
    >>> cheap = SklearnModelHandlerNumpy(samples.digits_classifier(), inference_fn=probabilities)
    >>> expensive = SklearnModelHandlerNumpy(samples.digits_forest(), ModelFileType.JOBLIB)
    >>> images, _ = samples.held_out_digits()
    >>> threshold = learn_cascade(
    ...     cheap, expensive, images, confidence=max_probability, agrees=same_class, agreement=0.9
    ... )
    >>> threshold.agreement_lower_bound >= 0.9, threshold.expected_savings > 0.5
    (True, True)

    Args:
        cheap: The handler of the cheap model.
        expensive: The handler of the expensive model. It takes the same elements.
        sample: Elements as in the pipeline, at least 74 for the default rates. Labels aren't needed.
        confidence: A function of the cheap model's prediction, such as ``max_probability`` or
            ``probability_margin``. It returns a number that is higher if the model is more confident, or NaN if
            the confidence is unknown. The prediction is the ``inference`` of a ``PredictionResult``, or another
            result without its key.
        agrees: A function of both predictions that returns whether they agree. By default, they agree if they are
            equal. For class probabilities, use ``same_class``.
        agreement: The requested rate of agreement, between 0 and 1.
        error_probability: The maximum probability that the threshold doesn't reach the requested rate, between 0
            and 1.
        cheap_args: Keyword arguments for ``predict`` of the cheap handler, such as
            ``{"inference_args": {...}}``.
        expensive_args: Keyword arguments for ``predict`` of the expensive handler.
        seed: The seed of the random choice. Equal seeds give the same results.

    Returns:
        The threshold, with the expected agreement and savings. Pass it to
        [Cascade][runinference.cascade.Cascade].

    Raises:
        OptionError: A value is out of range, the sample is too small for the requested rate, or the expensive
            model predicts the same for all of its elements.
        ElementError: A model fails on all of the first 64 elements, or the confidence isn't a number.
    """
    check_rate("agreement", agreement)
    check_rate("error_probability", error_probability)
    check_callable("confidence", confidence)
    check_callable("agrees", agrees)
    for name, args in (("cheap_args", cheap_args), ("expensive_args", expensive_args)):
        if args is not None:
            check_mapping(name, args)
    steps = PassThroughStep(cheap, "cheap"), PassThroughStep(expensive, "expensive")
    check_elements("sample", sample)
    elements = list(sample)
    n_needed = sample_size(agreement, error_probability)
    n_tested = len(elements) - len(elements) // 5
    _check_size(n_tested, n_needed, len(elements), agreement, error_probability)
    scores = Scores(confidence, agrees)
    order = np.random.default_rng(seed).permutation(len(elements))
    elements = [elements[index] for index in order]
    results, cheap_failed = _predict(steps[0], "cheap", elements, cheap_args)
    confidences = {index: scores.confidence(result) for index, result in results.items()}
    first = len(elements) - n_tested
    tested = [index for index in range(first, len(elements)) if index in confidences]
    _check_size(len(tested), n_needed, len(elements), agreement, error_probability)
    candidates = choose_candidates(
        [confidences[i] for i in range(first) if i in confidences],
        n_tested,
        agreement,
        error_probability,
    )
    answers, expensive_failed = _predict(
        steps[1], "expensive", [elements[index] for index in tested], expensive_args
    )
    _check_classes([*answers.values()], same_class if agrees is same_class else equal_predictions)
    # If the expensive model fails, there is no agreement.
    agreed = [
        number in answers and scores.agree(results[index], answers[number])
        for number, index in enumerate(tested)
    ]
    tested_confidences = [confidences[index] for index in tested]
    found = find_lowest(candidates, tested_confidences, agreed, agreement, error_probability)
    threshold = math.inf if found is None else found[0]
    accepted = [c > threshold for c in tested_confidences]
    n, n_agreed = sum(accepted), sum(a and b for a, b in zip(accepted, agreed, strict=True))
    learned = CascadeThreshold(
        threshold,
        confidence,
        agrees,
        agreement=agreement,
        expected_agreement=n_agreed / n if n else None,
        agreement_lower_bound=lower_bound(n, n_agreed, found[1]) if found else None,
        expected_savings=n / len(tested),
        n_tested=len(tested),
        n_failed=cheap_failed + expensive_failed,
    )
    _LOGGER.info("%s", str(learned).replace("\n", " "))
    return learned


def _check_size(
    n_tested: int, n_needed: int, n: int, agreement: float, error_probability: float
) -> None:
    if n_tested < n_needed:
        raise OptionError(
            f"The sample has {n} elements. {n_tested} of them can test thresholds, but {n_needed} are needed for "
            f"an agreement of {agreement} with an error probability of {error_probability}, even if the models "
            f"agree on all of them. To fix this, pass at least {math.ceil(n_needed * 1.25)} elements for which "
            "the cheap model succeeds, or request a lower agreement."
        )


def _predict(
    step: PassThroughStep, name: str, elements: Sequence[Any], args: Mapping[str, Any] | None
) -> tuple[dict[int, Any], int]:
    """Return the results by the index of their element, and the number of elements that failed.

    Raises:
        ElementError: All elements of the first call failed.
    """
    results: dict[int, Any] = {}
    errors: dict[int, Exception] = {}

    def predict(elements: Sequence[Any]) -> list[Any]:
        pairs = [carry_itself(step.may_modify_examples, each) for each in elements]
        output = step.handler.predict(pairs, **(args or {}))
        return [step.drop_key(result) for _, result in output]

    def predict_one(element: Any) -> Any:
        try:
            return predict([element])[0]
        except _FATAL:
            raise
        except Exception as error:
            return error

    def predict_chunk(chunk: Sequence[Any]) -> list[Any]:
        """Return results and errors."""
        if runs_in_parts(step.handler):  # each element is a request, and none is sent again
            with ThreadPoolExecutor(_REQUESTS) as pool:
                return [predict_one(chunk[0]), *pool.map(predict_one, chunk[1:])]
        try:
            return predict(chunk)
        except _FATAL:
            raise
        except Exception:
            return [*map(predict_one, chunk)]

    for start in range(0, len(elements), _CHUNK):
        chunk = elements[start : start + _CHUNK]
        for index, output in enumerate(predict_chunk(chunk), start):
            if isinstance(output, Exception):
                errors[index] = output
            else:
                results[index] = output
        if not results:
            message = _describe_errors(name, chunk, errors)
            cause = next(iter(errors.values()))
            raise ElementError(
                f"{message} To fix this, correct the handler or the elements."
            ) from cause
    if errors:
        _LOGGER.warning("%s", _describe_errors(name, elements, errors))
    return results, len(errors)


def _describe_errors(name: str, elements: Sequence[Any], errors: Mapping[int, Exception]) -> str:
    index, error = next(iter(errors.items()))
    return (
        f"The {name} model failed on {len(errors)} of {len(elements)} elements of the sample. The first one is "
        f"{describe_value(elements[index], 200)}: {describe(error, 1_000)}"
    )


def _check_classes(answers: Sequence[Any], equal: Callable[[Any, Any], bool]) -> None:
    """Raise `OptionError` if all predictions are equal, so that nothing is known about other classes."""
    if all(equal(answers[0], other) for other in answers[1:]):
        raise OptionError(
            f"All {len(answers)} predictions of the expensive model for the sample are equal, so the sample "
            "contains only one class. To fix this, pass a sample whose elements are like those of the pipeline."
        )
