"""Check the text of a LightGBM model, because LightGBM crashes the process on a damaged tree."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runinference.errors import ModelLoadError

# Tree fields, grouped by expected length. Optional fields may be missing.
_PER_SPLIT = ("left_child", "right_child", "split_feature", "threshold")
_OPTIONAL_PER_SPLIT = (
    "decision_type",
    "split_gain",
    "internal_value",
    "internal_weight",
    "internal_count",
)
_OPTIONAL_PER_LEAF = ("leaf_weight", "leaf_count")
_NUMBER_CHARACTERS = frozenset("0123456789.e+- infa")


def check_model_text(text: bytes, path: str) -> None:
    """Raise `ModelLoadError` for a file that would crash LightGBM."""
    if not text.startswith(b"tree\n"):
        raise ModelLoadError(
            f"The file {path!r} (model_uri) is not a LightGBM model: it starts with {text[:12]!r}. Write it "
            'with booster.save_model("model.txt"), where booster is model.booster_ of an LGBMClassifier.'
        )
    has_parameters = b"\nparameters:" in text
    if b"\nend of trees" not in text or (has_parameters and b"\nend of parameters" not in text):
        raise ModelLoadError(
            f"The file {path!r} (model_uri) is truncated: it starts like a LightGBM model, but does not end like "
            "one. Copy it again."
        )
    header, *trees = re.split(rb"^(?=Tree=)", text[: text.index(b"\nend of trees") + 1], flags=re.M)
    sizes = re.search(rb"^tree_sizes=([\d ]*)$", header, re.MULTILINE)
    if sizes is not None and [int(size) for size in sizes[1].split()] != [*map(len, trees)]:
        raise _damaged(path, "the sizes of its trees differ from those in its header")
    for number, tree in enumerate(trees):
        if defect := _find_defect(tree):
            raise _damaged(path, f"in tree {number}, {defect}")


def _find_defect(tree: bytes) -> str:
    """Describe the defect of a tree that would crash LightGBM. Return an empty string for a valid tree."""
    lines = [line for line in tree.decode("utf-8", "replace").split("\n") if line]
    if broken := next((line for line in lines if "=" not in line), ""):
        return f"there is a line {broken[:40]!r}"
    fields = dict(line.split("=", 1) for line in lines)
    try:
        n_leaves, _ = int(fields["num_leaves"]), int(fields["num_cat"])
        _check_counts(fields, ("leaf_value",), n_leaves)
        if n_leaves < 2:
            return ""
        _check_counts(fields, _PER_SPLIT, n_leaves - 1)
        _check_counts(fields, filter(fields.__contains__, _OPTIONAL_PER_SPLIT), n_leaves - 1)
        _check_counts(fields, filter(fields.__contains__, _OPTIONAL_PER_LEAF), n_leaves)
        children = [int(n) for side in _PER_SPLIT[:2] for n in fields[side].split()]
    except KeyError as error:
        return f"{error.args[0]} is missing"
    except ValueError as error:
        return str(error)
    # Each leaf, and each split except the root, is the child of exactly one split.
    if sorted(children) != [*range(-n_leaves, 0), *range(1, n_leaves - 1)]:
        return "left_child and right_child do not form a tree"
    return ""


def _check_counts(fields: dict[str, str], names: Iterable[str], expected: int) -> None:
    for name in names:
        found = _count_numbers(name, fields[name].strip(" "))
        if found != expected:
            raise ValueError(f"{name} has {found} number{'s' * (found != 1)} instead of {expected}")


def _count_numbers(name: str, text: str) -> int:
    """Parse every number, as LightGBM does, and return the number of them."""
    try:
        if _NUMBER_CHARACTERS.issuperset(text):
            return len([float(number) for number in text.split(" ")])
    except ValueError:
        pass
    raise ValueError(f"{name} does not hold numbers") from None


def _damaged(path: str, defect: str) -> ModelLoadError:
    return ModelLoadError(
        f"The file {path!r} (model_uri) is damaged: {defect}. Copy it again, or save the model again."
    )
