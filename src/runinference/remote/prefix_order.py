"""The order of requests in which those that share a long prefix follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from runinference.remote.request_batch import is_sequence

#: Characters that texts must share. Servers cache prefixes in blocks of 16 tokens or more.
MIN_SHARED = 200
#: Characters of a text that are compared.
_MAX_COMPARED = 20_000


def order_by_prefix(texts: Sequence[str]) -> list[int]:
    """Return the numbers of texts in the order to send them.

    It is the given order, unless some texts share a prefix of ``MIN_SHARED`` characters.

    >>> red, blue = "red " * 50, "blue " * 50
    >>> order_by_prefix([red + "1", blue + "1", red + "2", blue + "2"])
    [1, 3, 0, 2]
    >>> order_by_prefix(["b", "a"])
    [0, 1]
    """
    order = sorted(range(len(texts)), key=texts.__getitem__)
    starts = [texts[index][:MIN_SHARED] for index in order]
    is_shared = any(
        len(start) == MIN_SHARED and start == following for start, following in pairwise(starts)
    )
    return order if is_shared else list(range(len(texts)))


def get_prefix(example: Any) -> str:
    """Return the text at the start of a prompt: a string, or the messages of a chat."""
    if isinstance(example, str):
        return example[:_MAX_COMPARED]
    texts: list[str] = []
    for message in example if is_sequence(example) else ():
        texts.append(str(message)[:_MAX_COMPARED])
        if sum(map(len, texts)) >= _MAX_COMPARED:
            break
    return "\n".join(texts)
