"""Order requests so that those with the same long prefix are sent one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

#: Characters that texts must share. Servers cache prefixes in blocks of 16 tokens or more.
MIN_SHARED = 200
#: Characters of a text that are compared.
_MAX_COMPARED = 20_000


def order_by_prefix(texts: Sequence[str]) -> list[int]:
    """Return the indices of texts in the order to send them.

    The order doesn't change unless some texts share a prefix of ``MIN_SHARED`` characters.

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
    """Return the text at the start of a prompt: a string, or the messages of a chat up to an image or audio.

    >>> get_prefix([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    'system Be brief. user Hello'
    """
    if isinstance(example, str):
        return example[:_MAX_COMPARED]
    messages = example if isinstance(example, (list, tuple)) else ()
    texts: list[str] = []
    for text in chain.from_iterable(map(_iter_texts, messages)):
        if text is None or sum(map(len, texts)) >= _MAX_COMPARED:
            break
        texts.append(text[:_MAX_COMPARED])
    return " ".join(texts)


def _iter_texts(message: Any) -> Iterator[str | None]:
    """Yield the texts of a message, and None for a part that isn't text."""
    if not isinstance(message, Mapping):
        return
    yield str(message.get("role"))
    content = message.get("content")
    for part in [content] if isinstance(content, str) else content or ():
        text = part.get("text") if isinstance(part, Mapping) else part
        yield text if isinstance(text, str) else None
