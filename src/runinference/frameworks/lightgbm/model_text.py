"""Looks through a LightGBM model's text before LightGBM does, which ends the process where a tree is damaged."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runinference.errors import ModelLoadError

# Fields of a tree: how many numbers each has, by the number of leaves. LightGBM wants as many; those of the
# first kind must be there, the others may.
_OF_EACH_SPLIT = ("left_child", "right_child", "split_feature", "threshold")
_MAYBE_OF_EACH_SPLIT = (
    "decision_type",
    "split_gain",
    "internal_value",
    "internal_weight",
    "internal_count",
)
_MAYBE_OF_EACH_LEAF = ("leaf_weight", "leaf_count")
_SIGNS_OF_NUMBERS = frozenset("0123456789.e+- infa")


def check_whole(state: bytes, path: str) -> None:
    """Refuses what would end the process.

    Raises:
        ModelLoadError: The file is no model of LightGBM's, is truncated, or one of its trees is damaged.
    """
    if not state.startswith(b"tree\n"):
        raise ModelLoadError(
            f"The file {path!r} (model_uri) is no model of LightGBM's: it begins with {state[:12]!r}. Write it "
            'with booster.save_model("model.txt"), where booster is model.booster_ of an LGBMClassifier.'
        )
    begun = b"\nparameters:" in state
    if b"\nend of trees" not in state or (begun and b"\nend of parameters" not in state):
        raise ModelLoadError(
            f"The file {path!r} (model_uri) is truncated: it begins like a model of LightGBM's, and does not end "
            "like one. Copy it again."
        )
    header, *trees = re.split(
        rb"^(?=Tree=)", state[: state.index(b"\nend of trees") + 1], flags=re.M
    )
    sizes = re.search(rb"^tree_sizes=([\d ]*)$", header, re.MULTILINE)
    if sizes is not None and [int(size) for size in sizes[1].split()] != [*map(len, trees)]:
        raise _damaged(path, "its trees have other sizes than its header says")
    for number, tree in enumerate(trees):
        if why := _wrong_with(tree):
            raise _damaged(path, f"in tree {number}, {why}")


def _wrong_with(tree: bytes) -> str:
    """What LightGBM would stumble over in a tree; empty if there is nothing."""
    lines = [line for line in tree.decode("utf-8", "replace").split("\n") if line]
    if broken := next((line for line in lines if "=" not in line), ""):
        return f"there is a line {broken[:40]!r}"
    fields = dict(line.split("=", 1) for line in lines)
    try:
        n_leaves, _ = int(fields["num_leaves"]), int(fields["num_cat"])
        _check(fields, ("leaf_value",), n_leaves)
        if n_leaves < 2:
            return ""
        _check(fields, _OF_EACH_SPLIT, n_leaves - 1)
        _check(fields, filter(fields.__contains__, _MAYBE_OF_EACH_SPLIT), n_leaves - 1)
        _check(fields, filter(fields.__contains__, _MAYBE_OF_EACH_LEAF), n_leaves)
        children = [int(n) for side in _OF_EACH_SPLIT[:2] for n in fields[side].split()]
    except KeyError as error:
        return f"{error.args[0]} is missing"
    except ValueError as error:
        return str(error)
    # Each split but the first, and each leaf, hangs on one split.
    if sorted(children) != [*range(-n_leaves, 0), *range(1, n_leaves - 1)]:
        return "left_child and right_child are no tree"
    return ""


def _check(fields: dict[str, str], names: Iterable[str], n: int) -> None:
    for name in names:
        found = _count(name, fields[name].strip(" "))
        if found != n:
            raise ValueError(f"{name} has {found} number{'s' * (found != 1)} instead of {n}")


def _count(name: str, text: str) -> int:
    """How many numbers there are; all are read, as LightGBM will."""
    try:
        if _SIGNS_OF_NUMBERS.issuperset(text):
            return len([float(number) for number in text.split(" ")])
    except ValueError:
        pass
    raise ValueError(f"{name} does not hold numbers") from None


def _damaged(path: str, why: str) -> ModelLoadError:
    return ModelLoadError(
        f"The file {path!r} (model_uri) is damaged: {why}. Copy it again, or save it anew."
    )
