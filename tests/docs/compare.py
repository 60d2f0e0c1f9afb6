"""Is what a page shows what the program printed?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from difflib import unified_diff

from docs.blocks import Block, Fault, Program
from docs.run import Ran

_CURE = "If the new one is right, run `make docs-update`."


def faults_of(program: Program, ran: Ran) -> list[Fault]:
    """Everything in which a run differs from what the page promises."""
    block = program.block
    if ran.timed_out:
        return [block.fault(f"still running after {ran.seconds:.0f} s", "Make it smaller.")]
    if block.raises and not ran.failed:
        return [
            block.fault(
                f"should raise {block.raises}, but ends without an error",
                "Take the `raises` and the error away, or make the program fail again.",
            )
        ]
    if block.raises and last_error(ran.stderr, block.raises) is None:
        return [
            block.fault(f"should raise {block.raises}, but fails with:\n{tail(ran)}", "Mend one.")
        ]
    if ran.failed and not block.raises:
        return [block.fault(f"the program fails:\n{tail(ran)}", "Mend the program.")]
    faults = []
    if program.output is None and ran.stdout.strip():
        faults.append(
            block.fault(
                f"prints what the page does not show:\n{ran.stdout[:500]}",
                'Add an empty block ```text title="Output" and run `make docs-update`.',
            )
        )
    for shown, actual in pairs(program, ran):
        faults += _differs(shown, actual)
    return faults


def pairs(program: Program, ran: Ran) -> list[tuple[Block, str]]:
    """Each block that shows something of the run, with what it should show."""
    actual = [
        (program.output, ran.stdout),
        (program.error, error_text(program, ran)),
        (program.picture, ran.picture),
    ]
    return [(shown, text) for shown, text in actual if shown and text is not None]


def error_text(program: Program, ran: Ran) -> str:
    """The last lines of the message, from the one that names the error that must be raised."""
    return last_error(ran.stderr, program.block.raises or "") or ""


def last_error(stderr: str, name: str) -> str | None:
    """What the interpreter printed last, from the line that begins with this error's name."""
    starts = list(re.finditer(rf"^(?:\w+\.)*{re.escape(name)}(?=:|\s*$)", stderr, re.MULTILINE))
    return stderr[starts[-1].start() :].strip("\n") if starts else None


def tail(ran: Ran) -> str:
    return ran.stderr.strip()[-2000:]


def same(shown: Block, actual: str) -> bool:
    """Do the two agree, as far as the block's title and its `varies` ask?"""
    old, new = _lines(masked(shown, shown.code)), _lines(masked(shown, actual))
    if shown.title == "Output (any order)":
        return Counter(old) == Counter(new)
    return old == new


def masked(shown: Block, text: str) -> str:
    """The text with the name of each varying part in its place."""
    for name, pattern in shown.varies.items():
        text = re.sub(pattern, _named(name), text)
    return text


def _named(name: str) -> Callable[[re.Match[str] | None], str]:
    return lambda _: f"<{name}>"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").split("\n")]


def _differs(shown: Block, actual: str) -> list[Fault]:
    faults = [
        shown.fault(f"the pattern of `{name}` matches nothing here", "Take it away, or mend it.")
        for name, pattern in shown.varies.items()
        if shown.code.strip()
        and not re.search(pattern, shown.code)
        and _named(name)(None) not in shown.code
    ]
    if not same(shown, actual):
        ordered = sorted if shown.title == "Output (any order)" else list
        difference = unified_diff(
            ordered(_lines(masked(shown, shown.code))),
            ordered(_lines(masked(shown, actual))),
            "the page shows",
            "the program printed",
            lineterm="",
        )
        faults.append(shown.fault("the output is not this:\n" + "\n".join(difference), _CURE))
    return faults
