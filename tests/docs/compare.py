"""Compares what a program printed with what the page shows."""

from __future__ import annotations

import re
from collections import Counter
from difflib import unified_diff

from docs.blocks import Block, Problem, Program, display_path
from docs.run import RunResult

_HINT = "If the new output is right, run `make docs-update`."
#: Beam logs this when it stops a server, such as Prism, after the pipeline has failed.
_SERVER_LOG = re.compile(r"^WARNING:apache_beam\.utils\.subprocess_server:.*\n?", re.MULTILINE)
_FRAME = re.compile(r'File "(?:[^"\n]*/)?program\.py", line (?P<line>\d+)')
_UNDEFINED = re.compile(r"^NameError: name '(?P<name>\w+)' is not defined", re.MULTILINE)


def check_run(program: Program, result: RunResult) -> list[Problem]:
    """Return all differences between a run and the page."""
    block = program.block
    if result.timed_out:
        message = f"still running after {result.seconds:.0f} s"
        return [block.problem(message, "Make the program smaller.")]
    if block.raises and not result.failed:
        return [
            block.problem(
                f"should raise {block.raises}, but ends without an error",
                "Remove the `raises` comment and the error block, or make the program fail again.",
            )
        ]
    if block.raises and find_error_message(result.stderr, block.raises) is None:
        message = f"should raise {block.raises}, but fails with:\n{stderr_tail(block, result)}"
        return [block.problem(message, "Fix the program or the `raises` comment.")]
    if result.failed and not block.raises:
        return [_describe_failure(block, result)]
    problems = []
    if program.output is None and result.stdout.strip():
        problems.append(
            block.problem(
                f"prints text that the page doesn't show:\n{result.stdout[:500]}",
                'Add an empty block ```text title="Output" and run `make docs-update`.',
            )
        )
    for block_shown, actual in shown_and_actual(program, result):
        problems += _compare_output(block_shown, actual)
    return problems


def shown_and_actual(program: Program, result: RunResult) -> list[tuple[Block, str]]:
    """Return each block that shows a part of the run, with the actual text of that part."""
    error = find_error_message(result.stderr, program.block.raises or "") or ""
    parts = [
        (program.output, result.stdout),
        (program.error, error),
        (program.diagram, result.diagram),
    ]
    return [(block, actual) for block, actual in parts if block and actual is not None]


def find_error_message(stderr: str, name: str) -> str | None:
    """Return the end of stderr, from the last line that begins with the name of the error."""
    starts = list(re.finditer(rf"^(?:\w+\.)*{re.escape(name)}(?=:|\s*$)", stderr, re.MULTILINE))
    if not starts:
        return None
    return _SERVER_LOG.sub("", stderr[starts[-1].start() :]).strip("\n")


def _describe_failure(block: Block, result: RunResult) -> Problem:
    """Return the problem of a program that fails, at the line of the page that raises."""
    lines = [block.line + int(frame["line"]) for frame in _FRAME.finditer(result.stderr)]
    hint = "Fix the program."
    if undefined := _UNDEFINED.search(result.stderr):
        name = undefined["name"]
        hint = f"Define or import `{name}` in this block, because blocks don't share names."
    message = f"the program fails:\n{stderr_tail(block, result)}"
    return Problem(block.path, lines[-1] if lines else block.line, message, hint)


def stderr_tail(block: Block, result: RunResult) -> str:
    """Return the end of stderr, with the lines of the page in tracebacks."""

    def frame_on_page(frame: re.Match[str]) -> str:
        return f'File "{display_path(block.path)}", line {block.line + int(frame["line"])}'

    return _FRAME.sub(frame_on_page, result.stderr.strip())[-2000:]


def matches(block: Block, actual: str) -> bool:
    """Return whether the texts are equal, given the block's title and its `varies` patterns."""
    old, new = _lines(mask(block, block.code)), _lines(mask(block, actual))
    if block.title == "Output (any order)":
        return Counter(old) == Counter(new)
    return old == new


def mask(block: Block, text: str) -> str:
    """Replace each varying part with its name in angle brackets."""
    for name, pattern in block.varies.items():
        # A function as the replacement, because the name is not a template.
        text = re.sub(pattern, lambda _, name=name: f"<{name}>", text)
    return text


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").split("\n")]


def _compare_output(block: Block, actual: str) -> list[Problem]:
    problems = [
        block.problem(
            f"the pattern of `{name}` matches nothing here", "Remove the pattern, or fix it."
        )
        for name, pattern in block.varies.items()
        if block.code.strip()
        and not re.search(pattern, block.code)
        and f"<{name}>" not in block.code
    ]
    if not matches(block, actual):
        ordered = sorted if block.title == "Output (any order)" else list
        difference = unified_diff(
            ordered(_lines(mask(block, block.code))),
            ordered(_lines(mask(block, actual))),
            "the page shows",
            "the program printed",
            lineterm="",
        )
        message = "the output is different:\n" + "\n".join(difference)
        problems.append(block.problem(message, _HINT))
    return problems
