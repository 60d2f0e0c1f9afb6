"""Options of handlers, besides the batch size, that ``runinference.tuning`` measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TunableOption:
    """An option of a handler that changes the speed of its calls.

    Attributes:
        name: The keyword of the constructor.
        values: The values to measure: the default first if they are alternatives, ascending if they are numbers.
        default: The default of the constructor.
        is_choice: Whether the values are alternatives. Otherwise, they are numbers of which larger ones cost more.
        applies: Whether to measure the option by default.
    """

    name: str
    values: Sequence[Any]
    default: Any
    is_choice: bool = False
    applies: bool = True


class Tunable:
    """A base class of handlers with options that ``runinference.tuning`` measures."""

    def default_length_fn(self) -> Callable[[Any], int] | None:
        """Return the function that is used as ``batch_length_fn`` if only ``max_padded_size`` is given."""
        return None

    def uses_micro_batches(self) -> bool:
        """Return whether each batch is divided into micro-batches, so that only large batches are useful."""
        return False

    def with_micro_batches(self, used: bool) -> Any:
        """Return a copy that calls its model as without ``max_padded_size`` if ``used``, and otherwise as with it.

        Both call the same model. Most handlers call it in the same way.
        """
        return self

    def tunable_options(self) -> Sequence[TunableOption]:
        """Return the options to measure, in this order."""
        return ()

    def with_option(self, name: str, value: Any) -> Any:
        """Return a copy of the handler with another value of an option. The copy must load its model again."""
        raise NotImplementedError
