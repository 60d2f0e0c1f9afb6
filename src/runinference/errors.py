"""What can go wrong, each with its own name; every message says the cure.

An error that wraps Beam's or Python's own kind is also of that kind, so that a program that caught the
latter still does. Each takes one message, because Beam rebuilds an error as ``type(error)(message)`` when
it adds the name of the step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple


class RunInferenceError(Exception):
    """The base of all errors of this library."""


class UnknownOptionError(RunInferenceError, TypeError):
    """A keyword that nothing here understands."""


class OptionError(RunInferenceError, ValueError):
    """Options that contradict each other, or a value an option cannot take."""


class ModelNotFoundError(RunInferenceError, FileNotFoundError):
    """No file where the model should be."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ModelLoadError(RunInferenceError, RuntimeError):
    """A model file is there, and cannot be loaded as what it was said to be."""


class ElementError(RunInferenceError, ValueError):
    """An element is not what the handler takes, such as one without a key."""


class BatchShapeError(RunInferenceError, ValueError):
    """The elements of a batch do not stack."""


class ResultMismatchError(RunInferenceError, ValueError):
    """The model's output does not match the batch, one result an element."""


class OutOfMemoryError(RunInferenceError, MemoryError):
    """Memory did not suffice for an element that is a whole batch and is not divided; the cause says where."""


class ModelUnavailableError(RunInferenceError, RuntimeError):
    """A model could not be loaded; the cause says why. Dividing the batch does not help."""


class InferenceTimeoutError(RunInferenceError, TimeoutError):
    """Loading a model or calling it took longer than the timeout; the model was given up."""


class ChildDiedError(RunInferenceError, RuntimeError):
    """The subprocess that held a model ended while it worked on a batch."""


class TooManyFailuresError(RunInferenceError, ValueError):
    """A greater share of the records failed than the threshold allows."""


class Part(NamedTuple):
    """What became of one part of a batch that was sent in parts.

    Attributes:
        size: How many elements it has.
        results: Theirs, or None if there are none.
        error: Why not; None for a part that was never sent.
    """

    size: int
    results: list[Any] | None
    error: Exception | None


def parts_of(error: BaseException) -> list[Part]:
    """What became of the parts of the batch that failed with an error; empty if it was not sent in parts."""
    return getattr(error, "parts_of_batch", [])


def kept_of(batch: Any, parts: list[Part]) -> list[Any]:
    """The elements of a batch that have results, as its parts tell."""
    kept, start = [], 0
    for size, results, _ in parts:
        if results is not None:
            kept += list(batch[start : start + size])
        start += size
    return kept


def tell_parts(error: Exception, parts: list[Part]) -> Exception:
    """The error, which from now on tells what became of the parts of its batch."""
    error.parts_of_batch = parts  # type: ignore[attr-defined]
    return error


class CoderVersionError(RunInferenceError, ValueError):
    """An encoded ``PredictionResult`` has a wire format version that this version of the library cannot decode."""


class UnknownKeyError(RunInferenceError, KeyError):
    """An element has a key to which no model is mapped."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EndpointError(RunInferenceError, RuntimeError):
    """An endpoint did not do what it was asked to; the message says what it answered.

    Attributes:
        status_code: The HTTP status of the answer, or None if there was none.
        retry_after: What the answer's header ``Retry-After`` said, or None.
    """

    status_code: int | None = None
    retry_after: str | None = None


class EndpointRefusedError(EndpointError, ModelUnavailableError):
    """An endpoint refuses whatever is sent: the key, the address or the model's name is wrong."""


class EndpointUnreachableError(EndpointError, ModelUnavailableError, ConnectionError):
    """Nothing answers at the address of an endpoint."""


class EndpointDisconnectedError(EndpointError, ConnectionError):
    """The connection to an endpoint broke before the answer was there."""


class EndpointTimeoutError(EndpointError, TimeoutError):
    """An endpoint took longer to answer than the timeout."""


class UnusableAnswerError(EndpointError):
    """An endpoint answered well, and not as its protocol has it; another try does not help."""


class RateLimitExceeded(RunInferenceError, RuntimeError):  # noqa: N818 - Beam's name
    """A batch was not sent because the rate limit is used up."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the choice nearest to ``word``, whatever the case; nothing when none is near.

    >>> suggest("max_batchsize", ["min_batch_size", "max_batch_size"])
    " Did you mean 'max_batch_size'?"
    """
    spelt = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), spelt, n=1, cutoff=0.6)
    return f" Did you mean {spelt[found[0]]!r}?" if found else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine or a GPU is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return True  # TensorFlow's error
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def missing_key_error(element: Any) -> ElementError:
    """The error for an element that should have a key, and has none."""
    return ElementError(
        f"KeyedModelHandler takes (key, example), and got {type(element).__name__} {repr(element)[:60]}. "
        "Add a key, for example with beam.Map(lambda x: (x.name, x)), or use the handler without "
        "KeyedModelHandler."
    )
