"""RunInference steps whose results come with an object of any type, such as the original element."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import apache_beam as beam

from runinference.errors import ElementError, OptionError, describe_value
from runinference.handlers.key_mapping import check_handler_object
from runinference.handlers.keyed import KeyedModelHandler, MaybeKeyedModelHandler
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_per_key import split_pair
from runinference.results import with_model_id
from runinference.transforms.dead_letters import RunInferenceDLQ
from runinference.transforms.parameters import copy_parameters
from runinference.transforms.run_inference import RunInference

_NO_KEY = object()


class PassThroughKey:
    """A key that carries an object. It is equal to the key itself, so that it selects the same model.

    Args:
        carried: The object.
        key: The key of the element; by default, it has none.
    """

    def __init__(self, carried: Any, key: Any = _NO_KEY) -> None:
        self.carried = carried
        self.key = key
        self.has_key = key is not _NO_KEY

    def __reduce__(self) -> Any:
        return PassThroughKey, (self.carried, self.key) if self.has_key else (self.carried,)

    def __eq__(self, other: object) -> bool:
        return bool(self.key == (other.key if isinstance(other, PassThroughKey) else other))

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return str(self.key) if self.has_key else ""

    def __repr__(self) -> str:
        return repr(self.key) if self.has_key else "no key"

    def add_key(self, value: Any) -> Any:
        """Return ``(key, value)``, or the value if there is no key."""
        return (self.key, value) if self.has_key else value


class PassThroughStep:
    """A step of inference that takes ``(carried, element)`` and returns ``(carried, result)``.

    Args:
        handler: The handler of the elements, with or without keys.
        name: The name of the argument that is the handler, for errors.
        score: A function of a result without its key, which turns results into ``(result, score)``.
        model_column: The name of a column of rows with the name of the model; None for no such column.

    Raises:
        OptionError: The object isn't a handler, or its elements are batches.
    """

    def __init__(
        self,
        handler: Any,
        name: str,
        score: Callable[[Any], Any] | None = None,
        *,
        model_column: str | None = None,
    ) -> None:
        check_handler_object(handler, name)
        self._model_column = model_column
        if handler.should_skip_batching():
            raise OptionError(
                f"The elements of the handler {name} are already batches, but a cascade decides for each element. "
                "To fix this, leave with_no_batching out."
            )
        before, after = handler.get_preprocess_fns(), handler.get_postprocess_fns()
        plain = handler
        if isinstance(handler, ModelHandler):
            plain = handler._with_functions("preprocess_fns", ())
            plain = plain._with_functions("postprocess_fns", ())
        bind: Callable[[Any], Any] = _bind
        if type(handler).run_inference is KeyedModelHandler.run_inference:
            keyed, bind = plain, _bind_key
        elif isinstance(handler, MaybeKeyedModelHandler):
            keyed, bind = KeyedModelHandler(plain.inner_handlers()[0]), _bind_key_if_any
        else:
            keyed = KeyedModelHandler(plain)
        #: Whether results are ``(key, result)``. Beam's wrappers use the same name for what they wrap.
        self.is_keyed = getattr(handler, "_unkeyed", None) is not None
        scores = [] if score is None else [partial(self._add_score, score)]
        keyed = keyed._with_functions("preprocess_fns", [*map(_on_value, before), bind])
        self.handler: Any = keyed._with_functions(
            "postprocess_fns", [_unbind, *map(_on_value, after), *scores]
        )
        self._n_functions = len(before), len(after) + len(scores)

    @property
    def may_modify_examples(self) -> bool:
        """Whether the model may modify elements, or a function, which is not known."""
        return bool(self.handler.may_modify_examples()) or self._n_functions[0] > 0

    def drop_key(self, result: Any) -> Any:
        """Return a result without its key."""
        is_pair = self.is_keyed and type(result) is tuple and len(result) == 2
        return result[1] if is_pair else result

    def name_model(self, result: Any, name: str) -> Any:
        """Return a result with the name of its model: in a column, or as its ``model_id`` if it has none."""
        value = self.drop_key(result)
        if self._model_column is None:
            named = with_model_id(value, name)
        else:
            named = _add_column(value, self._model_column, name)
        return named if value is result else (result[0], named)

    def transform(self, options: Mapping[str, Any]) -> RunInference:
        """Return the transform with these options of RunInference."""
        return RunInference(self.handler, **options)

    def _add_score(self, score: Callable[[Any], Any], pair: Any) -> Any:
        carried, result = pair
        return carried, (result, score(self.drop_key(result)))

    def read_letters(
        self, dlq: RunInferenceDLQ, label: str, keep: Callable[[Any], bool] | None = None
    ) -> RunInferenceDLQ:
        """Return the dead letters without carried objects.

        Args:
            dlq: The dead letters of the transform.
            label: The start of the labels of the steps.
            keep: Returns whether to keep the dead letter of an element with this carried object.
        """
        *before, bound = dlq.failed_preprocessing
        _, *after = dlq.failed_postprocessing  # removing the carried object doesn't fail

        def read(letters: Any, name: str, split: Any) -> Any:
            return letters | f"{label} {name}" >> beam.FlatMap(partial(_read, split, keep))

        inferences = (
            read(bound, "unbound", tuple),
            read(dlq.failed_inferences, "inferences", _unbind),
        )
        return RunInferenceDLQ(
            inferences | f"{label} failed inferences" >> beam.Flatten(),
            [read(each, f"preprocessing {i}", tuple) for i, each in enumerate(before)],
            [read(each, f"postprocessing {i}", tuple) for i, each in enumerate(after)],
        )

    def empty_dead_letters(self, nothing: beam.PCollection) -> RunInferenceDLQ:
        """Return the dead letters of a step that isn't applied: an empty PCollection for each function."""
        n_before, n_after = self._n_functions
        return RunInferenceDLQ(nothing, [nothing] * n_before, [nothing] * n_after)


def _add_column(row: Any, column: str, value: str) -> Any:
    if not isinstance(row, beam.Row) or hasattr(row, column):
        raise ElementError(
            f"model_column={column!r} is for rows without this column, but a result is "
            f"{describe_value(row, 200)}. To fix this, choose another name, or leave model_column out."
        )
    return beam.Row(**row.as_dict(), **{column: value})


def carry_itself(copies: bool, element: Any) -> tuple[Any, Any]:
    """Return an element as its own carried object, and the element to process, a copy if it may be modified."""
    return element, copy.deepcopy(element) if copies else element


def _on_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of ``(carried, value)`` that applies another one to the value."""

    def apply(element: Any, *args: Any, **kwargs: Any) -> Any:
        carried, value = element
        return carried, function(value, *args, **kwargs)

    copy_parameters(function, apply)
    return apply


def _bind(element: Any) -> Any:
    carried, value = element
    return PassThroughKey(carried), value


def _bind_key(element: Any) -> Any:
    carried, (key, value) = element[0], split_pair(element[1])
    return PassThroughKey(carried, key), value


def _bind_key_if_any(element: Any) -> Any:
    return (_bind_key if isinstance(element[1], tuple) else _bind)(element)


def _unbind(element: Any) -> Any:
    """Return the carried object, and the element or result with its own key, if it has one."""
    key, value = element
    return key.carried, key.add_key(value)


def _read(split: Any, keep: Callable[[Any], bool] | None, letter: Any) -> Iterator[Any]:
    element, error = letter
    carried, value = split(element)
    if keep is None or keep(carried):
        yield value, error
