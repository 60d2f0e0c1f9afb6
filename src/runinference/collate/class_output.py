"""The labels of a classifier and the probability of each class, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runinference.errors import OptionError, ResultMismatchError, suggest

#: The value of ``probabilities``: a pattern for the names of columns, or the names of columns by class.
ProbabilitiesOption = str | Mapping[Any, str]
_PLACE = "{}"


class ClassPredictions(NamedTuple):
    """The output of a classifier for a batch of rows.

    Attributes:
        labels: The predicted class of each row: an array of shape (rows,), or a list.
        probabilities: The probabilities of each class, an array of shape (rows,) or a list, by class.
    """

    labels: Any
    probabilities: Mapping[Any, Any]


def to_class_predictions(
    probabilities: Any, classes: Sequence[Any], labels: Any = None
) -> ClassPredictions:
    """Return the predictions for a matrix of probabilities.

    >>> to_class_predictions(np.array([[0.25, 0.75]]), ["no", "yes"]).labels.tolist()
    ['yes']

    Args:
        probabilities: An array of shape (rows, classes).
        classes: The class of each column.
        labels: The label of each row. By default, the class with the greatest probability.
    """
    if labels is None:
        labels = np.asarray(classes)[np.argmax(probabilities, axis=1)]
    return ClassPredictions(labels, dict(zip(classes, probabilities.T, strict=True)))


class ClassColumns:
    """The columns of the probabilities, by class.

    Args:
        option: A pattern such as ``"p_{}"`` for a column for each class, or the names of columns by class.
        classes: The classes of the model; None if they are unknown.
        model: The name of the model in error messages.
        reason: Why the classes are unknown.

    Raises:
        OptionError: The model has no such class, the classes are unknown, or two columns have one name.
    """

    def __init__(
        self,
        option: str | tuple[tuple[Any, str], ...],
        classes: Sequence[Any] | None,
        model: str,
        reason: str = "",
    ) -> None:
        if isinstance(option, str):
            if classes is None:
                raise OptionError(
                    f"The classes of {model} are not known when the pipeline is built{reason}. To fix this, name "
                    "the column of each class: probabilities={class: name}."
                )
            self._names = {each: option.replace(_PLACE, str(each)) for each in classes}
        else:
            self._names = dict(option)
            for each in self._names:
                if classes is not None and each not in classes:
                    raise _unknown_class(each, classes, model)
        self._is_complete = isinstance(option, str)
        if len(set(self._names.values())) < len(self._names):
            raise OptionError(
                f"probabilities gives two columns one name: {', '.join(self.names)}. To fix this, name the "
                "column of each class: probabilities={class: name}."
            )

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [*self._names.values()]

    def select(self, found: ClassPredictions) -> dict[str, Any]:
        """Return the columns of the predictions by name.

        Raises:
            ResultMismatchError: The model lacks a class, or has another one that has no column.
        """
        columns = {}
        for each, name in self._names.items():
            if each not in found.probabilities:
                raise ResultMismatchError(
                    str(_unknown_class(each, [*found.probabilities], "model"))
                )
            columns[name] = found.probabilities[each]
        if self._is_complete and len(columns) < len(found.probabilities):
            extra = next(each for each in found.probabilities if each not in self._names)
            raise ResultMismatchError(
                f"The model has a class {extra!r}, which the model that the pipeline was built with lacks. To fix "
                "this, build the pipeline with the new model, or list the classes: probabilities={class: name}."
            )
        return columns


def check_probabilities(
    option: ProbabilitiesOption | None,
) -> str | tuple[tuple[Any, str], ...] | None:
    """Return the option ``probabilities`` as a hashable value.

    Raises:
        OptionError: It is neither a pattern nor a dictionary of names.
    """
    if option is None or (isinstance(option, str) and _PLACE in option):
        return option
    if isinstance(option, str):
        raise OptionError(
            f"probabilities is {option!r}, which lacks {_PLACE}, the place of the class. To fix this, add it: "
            f"probabilities={option + '_' + _PLACE!r}. For a single class, pass probabilities={{class: name}}."
        )
    if not isinstance(option, Mapping) or not option:
        raise OptionError(
            'probabilities must be a pattern, such as "p_{}", or a dictionary of names of columns by class, but '
            f"is {option!r}."
        )
    for each, name in option.items():
        if not isinstance(name, str) or not name:
            raise OptionError(
                f"probabilities gives the class {each!r} the column {name!r}. To fix this, use a string as name."
            )
    return tuple(option.items())


def _unknown_class(found: Any, classes: Sequence[Any], model: str) -> OptionError:
    names = ", ".join(map(repr, classes[:20])) + (", …" if len(classes) > 20 else "")
    hint = suggest(str(found), map(str, classes))
    return OptionError(
        f"The {model} has no class {found!r} (probabilities).{hint} Its classes are {names}."
    )
