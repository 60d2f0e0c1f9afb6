"""What a handler takes for a batch of rows: a table, an array, named arrays, or one example per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runinference.collate.frames import to_categories
from runinference.collate.named_inputs import InputSpec
from runinference.collate.row_features import Features


class RowInput(ABC):
    """The form in which a handler takes the features of a batch.

    Attributes:
        is_table: Whether the handler takes tables, and not always a list of examples.
    """

    is_table = True

    @abstractmethod
    def collate(self, features: Features, model: Any) -> Any:
        """Return the features of a batch in the form for ``run_inference``: a table, or a list of examples.

        Args:
            features: The columns.
            model: The object that ``load_model`` returned.
        """


class FrameInput(RowInput):
    """A DataFrame with the columns.

    Args:
        get_categories: Returns the categories of each feature of a model, or None for those without. Columns with
            categories become categorical, because a value in a row can't be.
    """

    def __init__(self, get_categories: Callable[[Any], Sequence[Any]] = lambda model: ()) -> None:
        self._get_categories = get_categories

    def collate(self, features: Features, model: Any) -> Any:
        frame = features.frame()
        changed = {
            name: to_categories(frame[name], categories)
            for name, categories in zip(frame.columns, self._get_categories(model), strict=False)
            if categories is not None
        }
        return frame.assign(**changed) if changed else frame


class ArrayInput(RowInput):
    """An array of shape (rows, columns)."""

    def collate(self, features: Features, model: Any) -> Any:
        return features.matrix()


class NamedInput(RowInput):
    """An array for each input of the model if the columns have the names of its inputs, or one array for all.

    Args:
        get_inputs: Returns the inputs of a model by name.
    """

    def __init__(self, get_inputs: Callable[[Any], Mapping[str, InputSpec]]) -> None:
        self._get_inputs = get_inputs

    def collate(self, features: Features, model: Any) -> Any:
        inputs = self._get_inputs(model)
        if not set(features.names) <= inputs.keys():
            return features.matrix()
        arrays = {name: features.array(name) for name in features.names}
        return {
            name: array[:, None] if array.ndim == 1 and len(inputs[name].shape) == 2 else array
            for name, array in arrays.items()
        }


class ExampleInput(RowInput):
    """One example per row: its value if there is one column, otherwise a dictionary of its values."""

    is_table = False

    def collate(self, features: Features, model: Any) -> Any:
        if len(features.names) == 1:
            return features.values(features.names[0])
        return features.examples()


class TextInput(ExampleInput):
    """A text per row, or a pair of texts if there are two columns."""

    def collate(self, features: Features, model: Any) -> Any:
        if len(features.names) == 2:
            return [*zip(*map(features.values, features.names), strict=True)]
        return super().collate(features, model)
