"""The exceptions of this library. Each message describes what happened and how to fix it.

An exception that replaces one of Beam's or Python's exceptions also derives from it, so existing ``except``
clauses still match. Each takes a single message, because Beam rebuilds errors as ``type(error)(message)`` to add
the step name.
"""

from __future__ import annotations

import difflib
import errno
import pickle
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

#: The maximum number of characters of an error message in a dead letter.
MAX_MESSAGE_LENGTH = 10_000


class RunInferenceError(Exception):
    """The base class of all errors of this library."""


class UnknownOptionError(RunInferenceError, TypeError):
    """A keyword argument is unknown."""


class OptionError(RunInferenceError, ValueError, RuntimeError):
    """Options conflict with each other, or an option has an invalid value.

    Beam raises a ``ValueError`` for some of these options, and a ``RuntimeError`` for others.
    """


class ModelFileTypeError(OptionError, AssertionError):
    """``model_file_type`` is not a ``ModelFileType``."""


class ModelNotFoundError(RunInferenceError, FileNotFoundError, RuntimeError, ValueError):
    """The model file does not exist.

    In Beam, this stops a pipeline with a ``RuntimeError``, or with a ``ValueError`` for TensorFlow.
    """


class ModelLoadError(RunInferenceError, RuntimeError, ValueError):
    """A model file exists but cannot be loaded as the given type."""


class ModelUnpicklingError(ModelLoadError, pickle.UnpicklingError, EOFError):
    """A model file is not a pickle, is truncated, or contains objects that are not allowed."""


class PretrainedModelError(ModelLoadError, OSError):
    """A directory doesn't contain what ``from_pretrained`` loads, for which Transformers raises an ``OSError``."""


class _BatchError(RunInferenceError):
    """An error of a batch, which may name one of its elements.

    Attributes:
        index: The index of the element in the batch that the error is about, or None.
    """

    index: int | None = None

    def __init__(self, *args: Any, index: int | None = None) -> None:
        super().__init__(*args)
        if index is not None:
            self.index = index


class ElementError(_BatchError, ValueError):
    """The handler does not accept an element, for example because it has no key.

    Attributes:
        index: The index of the element in its batch, if it is known.
    """


class MissingKeyError(ElementError, TypeError):
    """An element of a keyed handler is not a tuple ``(key, example)``. In Beam, that is a ``TypeError``."""


class ModelInputError(ElementError, RuntimeError):
    """The model does not accept the elements of a batch: their dtype, their shape or the names of their inputs."""


class BatchShapeError(_BatchError, ValueError, RuntimeError):
    """The elements of a batch cannot be stacked.

    NumPy raises a ``ValueError`` for this, and PyTorch a ``RuntimeError``.

    Attributes:
        index: The index of the first element that differs from the others, if it is known.
    """


class BatchTypeError(BatchShapeError, TypeError):
    """An element of a batch has a type that cannot be stacked."""


class ResultMismatchError(RunInferenceError, ValueError):
    """The model output does not have one result per element of the batch."""


class OutOfMemoryError(RunInferenceError, MemoryError):
    """The model ran out of memory on an element that is itself a batch and cannot be split. See ``__cause__``."""


class ModelUnavailableError(RunInferenceError, RuntimeError):
    """The model could not be loaded, which affects every batch. See ``__cause__``.

    Attributes:
        stops_pipeline: Whether the error fails the pipeline, because the step has no other model. If False, the
            elements can become dead letters.
    """

    stops_pipeline = False

    @property
    def reason(self) -> BaseException:
        """The error that prevented loading the model. For subclasses, the error itself."""
        is_wrapper = type(self) is ModelUnavailableError
        return (self.__cause__ if is_wrapper else None) or self


class InferenceTimeoutError(RunInferenceError, TimeoutError):
    """Loading or calling a model exceeded the timeout."""


class ChildDiedError(RunInferenceError, RuntimeError):
    """The subprocess of a model exited while it processed a batch."""


class ModelHostDiedError(ChildDiedError):
    """The process that hosts a shared model exited during a call. The call is not retried in another process."""


class UnrepeatableBatchError(RunInferenceError, RuntimeError):
    """A call failed and can't be retried, because it may have modified its elements. See ``__cause__``."""


class TooManyFailuresError(RunInferenceError, ValueError):
    """The share of failed elements exceeds the ``threshold`` of ``with_exception_handling``."""


class TuningError(RunInferenceError, RuntimeError):
    """A handler can't be measured, because its model can't be loaded or fails on an element. See ``__cause__``."""


class PartialResult(NamedTuple):
    """The outcome of one part of a batch that was sent in several parts.

    Attributes:
        size: Number of elements in the part.
        results: One result per element, or None if the part failed or was never sent.
        error: The error of a part that failed, or None.
    """

    size: int
    results: list[Any] | None
    error: Exception | None


class PartialBatchError(RunInferenceError):
    """Some parts of a batch failed. The others have results.

    Attributes:
        parts: The outcome of each part, in order.
    """

    def __init__(self, parts: Sequence[PartialResult]) -> None:
        super().__init__(parts)
        self.parts = parts

    @property
    def first_error(self) -> Exception:
        """The error of the first part that failed."""
        return next(part.error for part in self.parts if part.error is not None)

    def succeeded(self, batch: Any) -> list[Any]:
        """Return the elements of the batch that have results."""
        elements, start = [], 0
        for size, results, _ in self.parts:
            if results is not None:
                elements += list(batch[start : start + size])
            start += size
        return elements

    def __str__(self) -> str:
        n_failed = sum(part.error is not None for part in self.parts)
        return f"{n_failed} of {len(self.parts)} parts of a batch failed: {self.first_error}"


def get_failing_index(error: BaseException) -> int | None:
    """Return the index of the element in its batch that an error is about, or None if it is unknown."""
    return error.index if isinstance(error, _BatchError) else None


class CoderVersionError(RunInferenceError, ValueError):
    """An encoded ``PredictionResult`` has a wire format version that this version of the library cannot decode."""


class UnknownKeyError(RunInferenceError, KeyError):
    """No model is mapped to the key of an element."""

    __str__ = Exception.__str__  # that of KeyError returns the repr


class EndpointError(RunInferenceError, RuntimeError):
    """A request to an endpoint failed. The message includes the response.

    Attributes:
        status_code: The HTTP status of the response, or None if there was none.
        retry_after: The value of the response header ``Retry-After``, or None.
        usage: The tokens that the request used, if the response of an error reports them.
    """

    status_code: int | None = None
    retry_after: str | None = None
    usage: Any = None


class EndpointRefusedError(EndpointError, ModelUnavailableError):
    """An endpoint rejects all requests because the API key, the address or the model name is wrong."""


class EndpointUnreachableError(EndpointError, ModelUnavailableError, ConnectionError):
    """No server responds at the address of an endpoint."""


class EndpointDisconnectedError(EndpointError, ConnectionError):
    """The connection to an endpoint broke before the response was complete."""


class EndpointTimeoutError(EndpointError, TimeoutError):
    """An endpoint did not respond within the timeout."""


class UnusableAnswerError(EndpointError):
    """A successful response does not follow the protocol of the endpoint. By default, it is not retried."""


class InvalidOutputError(UnusableAnswerError):
    """The answers of a language model don't have the type that ``output_type`` declares.

    The message includes the last answer, shortened.
    """


class NotCalledError(ModelUnavailableError):
    """Elements were not sent, because they would exceed ``max_tokens_total`` or ``max_cost`` of the handler.

    This error is never retried.
    """


class RateLimitExceeded(RunInferenceError, RuntimeError):  # noqa: N818 - Beam's name
    """A batch was not sent because the rate limit is exhausted."""


def suggest(word: Any, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the choice closest to ``word``, ignoring case; empty if none is close.

    The word can be another value, such as a number that is the key of a dictionary.

    >>> suggest("max_batchsize", ["min_batch_size", "max_batch_size"])
    " Did you mean 'max_batch_size'?"
    """
    originals = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(word).lower(), originals, n=1, cutoff=0.6)
    return f" Did you mean {originals[found[0]]!r}?" if found else ""


def describe(error: BaseException, limit: int = MAX_MESSAGE_LENGTH) -> str:
    """Return the type and the message of an error, shortened. Never raises, unlike ``str`` of some exceptions.

    >>> describe(ValueError("bad row")), describe(KeyError("x" * 100), limit=30)
    ('ValueError: bad row', "KeyError: 'xx … xxxxxxxxxxxx'")
    """
    name, message = type(error).__name__, get_message(error, limit)
    return shorten_text(f"{name}: {message}" if message else name, limit)


def get_message(error: BaseException, limit: int = MAX_MESSAGE_LENGTH) -> str:
    """Return the message of an error, shortened. Never raises."""
    try:
        return shorten_text(str(error), limit)
    except Exception as failure:
        return f"{type(error).__name__} (its str() raises {type(failure).__name__})"


def describe_value(value: Any, limit: int = 300) -> str:
    """Return the ``repr`` of a value from outside, shortened. Never raises."""
    try:
        return shorten_text(repr(value), limit)
    except Exception as error:
        return f"a {type(value).__name__} (its repr() raises {type(error).__name__})"


def shorten_text(text: str, limit: int = MAX_MESSAGE_LENGTH) -> str:
    """Replace the middle of a text that is longer than ``limit`` characters.

    >>> shorten_text("0123456789", 7)
    '01 … 89'
    """
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine or a GPU is out of memory.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return True  # TensorFlow's error
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_native = isinstance(error, RuntimeError) or str(type(error).__module__).startswith(_NATIVE)
    return is_native and _OUT_OF_MEMORY.search(get_message(error)) is not None


#: Packages whose errors for a lack of memory are not a RuntimeError.
_NATIVE = ("onnxruntime", "xgboost", "lightgbm", "tensorflow", "jax", "cupy")

#: What PyTorch, ONNX Runtime, XGBoost, LightGBM, TensorFlow, JAX and the drivers of GPUs say.
_OUT_OF_MEMORY = re.compile(
    r"out.of.memory|not enough memory|insufficient memory|bad_?alloc|bad_malloc|RESOURCE_EXHAUSTED"
    r"|OOM when allocating|Dst tensor is not initialized|ErrorMemoryAllocation|STATUS_ALLOC_FAILED"
    r"|(can't|cannot|can not|could not|couldn't|failed to|unable to) allocate\b.*(memory|buffer|bytes)"
    r"|memory allocation (failed|failure|error)",
    re.IGNORECASE,
)


def missing_key_error(element: Any) -> ElementError:
    """Return the error for an element that needs a key but has none."""
    return MissingKeyError(
        f"KeyedModelHandler takes (key, example), but got {type(element).__name__} {describe_value(element, 60)}. "
        "To fix this, add a key, for example with beam.WithKeys(lambda x: x.name), or remove the wrapper."
    )
