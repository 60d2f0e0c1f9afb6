"""Directives: the comments above a fence, and the words on it. Readers of the site don't see them."""

from __future__ import annotations

import re
from pathlib import Path

from docs.blocks import _PAIR, DIRECTIVES, LANGUAGES, OPTIONS, TITLES, Block, Problem, suggest

_COMMENT = re.compile(r"^\s*<!--\s*(?P<word>\w+)\s*:\s*(?P<value>.*?)\s*-->\s*$")
_OPTION = re.compile(r"([\w-]+)(?:=(\"[^\"]*\"|'[^']*'|\S+))?")


def read_directives(
    path: Path, lines: list[str], fence: int
) -> tuple[dict[str, str], list[Problem]]:
    """Return the directives directly above the fence on line `fence`, and the unknown or empty ones."""
    found: dict[str, str] = {}
    problems: list[Problem] = []
    number = fence - 1
    while number > 0 and (match := _COMMENT.match(lines[number - 1])):
        word, value = match["word"], match["value"]
        if word not in DIRECTIVES:
            hint = suggest(word, DIRECTIVES)
            problems.append(Problem(path, number, f"unknown directive `{word}`", hint))
        elif not value:
            hint = f"Write `{word}: ...`."
            problems.append(Problem(path, number, f"`{word}` has no value", hint))
        else:
            found[word] = f"{value} {found[word]}" if word in found else value
        number -= 1
    return found, problems


def check_directives(block: Block) -> list[Problem]:
    """Return the directives that are above the wrong kind of block, or can't be parsed."""
    problems = []
    places = {
        "raises": (block.language == "python", "a python block"),
        "shows": (block.language == "python", "a python block"),
        "skip": (block.language == "shell", "a shell block"),
        "draws": (block.language == "mermaid", "a mermaid block"),
        "varies": (block.is_output, 'a block titled "Output" or "Error"'),
    }
    for word in block.directives:
        is_allowed, place = places[word]
        if not is_allowed and not (word == "skip" and block.language == "python"):
            problems.append(
                block.problem(f"`{word}` is not allowed here", f"Put it directly above {place}.")
            )
    if "varies" in block.directives:
        problems += _check_patterns(block)
    if "shows" in block.directives:
        problems += _check_shown_lines(block)
    if block.draws not in (None, "LR", "TD"):
        problems.append(
            block.problem(
                f"unknown direction `{block.draws}`",
                "Write `draws: LR` (left to right) or `draws: TD` (top down).",
            )
        )
    return problems


def _check_shown_lines(block: Block) -> list[Problem]:
    text, lines = block.directives["shows"], len(block.code.splitlines())
    hint = f"List lines of the block, from 1 to {lines}, in order: `shows: 5-12, 20-24`."
    if not re.fullmatch(r"\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*", text):
        return [block.problem(f"can't parse `shows: {text}`", hint)]
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if numbers != sorted(numbers) or numbers[0] < 1 or numbers[-1] > lines:
        return [block.problem(f"`shows: {text}` is outside the block or out of order", hint)]
    return []


def _check_patterns(block: Block) -> list[Problem]:
    text = block.directives["varies"]
    if not block.varies or _PAIR.sub("", text).strip():
        return [block.problem(f"can't parse `varies: {text}`", 'Write name="regular expression".')]
    problems = []
    for name, pattern in block.varies.items():
        try:
            re.compile(pattern)
        except re.error as error:
            message = f"the pattern of `{name}` is invalid: {error}"
            problems.append(block.problem(message, "Fix the regular expression."))
    return problems


def check_fence(path: Path, number: int, text: str) -> list[Problem]:
    """Return the problems with the words after three backticks."""
    language, _, rest = text.strip().partition(" ")
    if not language:
        return [Problem(path, number, "a fence without a language", "Write ```text, for example.")]
    if "{" in text:
        return [Problem(path, number, "a fence with braces", "Write ```python, without braces.")]
    problems = []
    if language not in LANGUAGES:
        known = {"bash": "shell", "console": "shell", "sh": "shell", "py": "python"}.get(language)
        hint = f"Write ```{known}." if known else suggest(language, LANGUAGES)
        problems.append(Problem(path, number, f"unsupported language `{language}`", hint))
    for option, value in _OPTION.findall(rest):
        if option not in OPTIONS:
            hint = suggest(option, OPTIONS)
            problems.append(Problem(path, number, f"unknown option `{option}`", hint))
        elif not value.startswith(('"', "'")):
            message = f"the option `{option}` has no quoted value"
            problems.append(Problem(path, number, message, f'Write {option}="...".'))
        elif option == "title" and language == "text" and value[1:-1] not in TITLES:
            hint = suggest(value[1:-1], TITLES)
            if hint.startswith("Did you mean"):
                problems.append(Problem(path, number, f"a text block titled {value}", hint))
    return problems
