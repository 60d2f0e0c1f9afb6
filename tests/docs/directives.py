"""The comments above a fence: what the tests are told about a block, and readers never see."""

from __future__ import annotations

import re
from pathlib import Path

from docs.blocks import _PAIR, DIRECTIVES, LANGUAGES, OPTIONS, TITLES, Block, Fault, nearest

_COMMENT = re.compile(r"^\s*<!--\s*(?P<word>\w+)\s*:\s*(?P<value>.*?)\s*-->\s*$")
_OPTION = re.compile(r"([\w-]+)(?:=(\"[^\"]*\"|'[^']*'|\S+))?")


def above(path: Path, lines: list[str], fence: int) -> tuple[dict[str, str], list[Fault]]:
    """The directives directly above the fence on line `fence`, and those that nobody knows."""
    found: dict[str, str] = {}
    faults: list[Fault] = []
    number = fence - 1
    while number > 0 and (match := _COMMENT.match(lines[number - 1])):
        word, value = match["word"], match["value"]
        if word not in DIRECTIVES:
            faults.append(
                Fault(path, number, f"no directive is called `{word}`", nearest(word, DIRECTIVES))
            )
        elif not value:
            faults.append(Fault(path, number, f"`{word}` says nothing", f"Write `{word}: ...`."))
        else:
            found[word] = f"{value} {found[word]}" if word in found else value
        number -= 1
    return found, faults


def misused(block: Block) -> list[Fault]:
    """Directives that stand above a block of the wrong kind, or that cannot be read."""
    faults = []
    fits = {
        "raises": (block.language == "python", "a python block"),
        "shows": (block.language == "python", "a python block"),
        "skip": (block.language == "shell", "a shell block"),
        "draws": (block.language == "mermaid", "a mermaid block"),
        "varies": (block.is_output, 'a block titled "Output" or "Error"'),
    }
    for word in block.directives:
        fitting, where = fits[word]
        if not fitting and not (word == "skip" and block.language == "python"):
            faults.append(
                block.fault(f"`{word}` does not belong here", f"Put it directly above {where}.")
            )
    if "varies" in block.directives:
        faults += _unreadable(block)
    if "shows" in block.directives:
        faults += _beyond(block)
    if block.draws not in (None, "LR", "TD"):
        faults.append(
            block.fault(
                f"cannot draw in the direction {block.draws}",
                "Write `draws: LR` (from left to right) or `draws: TD` (from the top down).",
            )
        )
    return faults


def _beyond(block: Block) -> list[Fault]:
    """Is what is shown a part of the block, in order?"""
    text, lines = block.directives["shows"], len(block.code.splitlines())
    cure = f"Name lines of the block, from 1 to {lines}, in order: `shows: 5-12, 20-24`."
    if not re.fullmatch(r"\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*", text):
        return [block.fault(f"cannot read `shows: {text}`", cure)]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if numbers != sorted(numbers) or numbers[0] < 1 or numbers[-1] > lines:
        return [block.fault(f"`shows: {text}` is not a part of the block", cure)]
    return []


def _unreadable(block: Block) -> list[Fault]:
    text = block.directives["varies"]
    if not block.varies or _PAIR.sub("", text).strip():
        return [block.fault(f"cannot read `varies: {text}`", 'Write name="regular expression".')]
    faults = []
    for name, pattern in block.varies.items():
        try:
            re.compile(pattern)
        except re.error as error:
            faults.append(block.fault(f"the pattern of `{name}` is wrong: {error}", "Mend it."))
    return faults


def header(path: Path, number: int, text: str) -> list[Fault]:
    """What is wrong with the words after three backticks."""
    language, _, rest = text.strip().partition(" ")
    if not language:
        return [Fault(path, number, "a fence that names no language", "Write ```text, say.")]
    if "{" in text:
        return [Fault(path, number, "a fence with braces", "Write ```python, without braces.")]
    faults = []
    if language not in LANGUAGES:
        cure = {"bash": "shell", "console": "shell", "sh": "shell", "py": "python"}.get(language)
        cure = f"Write ```{cure}." if cure else nearest(language, LANGUAGES)
        faults.append(Fault(path, number, f"no language of ours is called `{language}`", cure))
    for option, value in _OPTION.findall(rest):
        if option not in OPTIONS:
            faults.append(
                Fault(path, number, f"no option is called `{option}`", nearest(option, OPTIONS))
            )
        elif not value.startswith(('"', "'")):
            faults.append(
                Fault(path, number, f"the option `{option}` has no value", f'{option}="..."')
            )
        elif option == "title" and language == "text" and value[1:-1] not in TITLES:
            near = nearest(value[1:-1], TITLES)
            if near.startswith("Did you mean"):
                faults.append(Fault(path, number, f"a text block titled {value}", near))
    return faults
