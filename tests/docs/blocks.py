"""What a block of a page is, and what can be wrong with one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

LANGUAGES = ("python", "shell", "text", "toml", "yaml", "json", "mermaid")
RUN = ("python", "shell")
OPTIONS = ("title", "hl_lines", "linenums")
DIRECTIVES = ("raises", "varies", "draws", "shows", "skip")
TITLES = ("Output", "Output (any order)", "Error")
ROOT = Path(__file__).resolve().parents[2]

_PAIR = re.compile(r'([\w-]+)="([^"]*)"')


@dataclass(frozen=True)
class Fault:
    """Something a page does wrong, where, and how to mend it."""

    path: Path
    line: int
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{shown(self.path)}:{self.line}: {self.what}\n    {self.cure}"


@dataclass(frozen=True)
class Block:
    """One fenced block, as the site shows it.

    `line` is the line of the opening fence, counted from one, and `end_line` that of the closing
    one; `code` is what stands between them, without `indent`.
    """

    path: Path
    line: int
    end_line: int
    language: str
    title: str
    code: str
    indent: str = ""
    directives: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{shown(self.path)}:{self.line}"

    @property
    def text(self) -> str:
        """What is copied and what runs: the code as it is, but for what is blank at its end.

        The theme's copy button leaves that out as well.
        """
        return self.code.rstrip()

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.title in TITLES

    @property
    def draws(self) -> str | None:
        """`LR` or `TD`, when this is a picture of the pipeline that the program above ran."""
        return self.directives.get("draws")

    @property
    def shows(self) -> str | None:
        """What of the program above this block shows: its `output`, its `error`, its `picture`."""
        if self.language == "mermaid" and self.draws:
            return "picture"
        if self.is_output:
            return "error" if self.title == "Error" else "output"
        return None

    @property
    def raises(self) -> str | None:
        return self.directives.get("raises")

    @property
    def skip(self) -> str | None:
        return self.directives.get("skip")

    @property
    def varies(self) -> dict[str, str]:
        """The named patterns of what may differ between two runs."""
        return dict(_PAIR.findall(self.directives.get("varies", "")))

    def fault(self, what: str, cure: str) -> Fault:
        return Fault(self.path, self.line, what, cure)


@dataclass(frozen=True)
class Program:
    """A block that runs, with the blocks that show what it prints, how it fails, what it builds."""

    block: Block
    output: Block | None = None
    error: Block | None = None
    picture: Block | None = None


def shown(path: Path) -> str:
    """A path as a person would type it from the root of the project."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """`Did you mean ...?`, or the whole choice where nothing is near."""
    close = get_close_matches(word, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Choose one of: {', '.join(known)}."


def pair_up(blocks: list[Block]) -> tuple[list[Program], list[Fault]]:
    """The programs of one page with their outputs, and the outputs that belong to no program."""
    programs: list[Program] = []
    faults: list[Fault] = []
    waiting: Block | None = None
    shows: dict[str, Block] = {}
    for block in [*blocks, None]:
        if block is not None and (kind := block.shows):
            if waiting is None or kind in shows:
                faults.append(
                    block.fault(
                        f"the {kind} of a program, but it follows no program",
                        "Put it right after the python or shell block that it belongs to.",
                    )
                )
            else:
                shows[kind] = block
            continue
        if waiting is not None:
            programs.append(Program(waiting, **shows))
        waiting = block if block is not None and block.language in RUN else None
        shows = {}
    for program in programs:
        faults += _unlike(program)
    return programs, faults


def _unlike(program: Program) -> list[Fault]:
    """What does not fit between a program and what the page shows of it."""
    block, faults = program.block, []
    if program.error and not block.raises:
        faults.append(
            program.error.fault(
                "an error is shown, but the program above is not expected to fail",
                "Write `<!-- raises: NameOfTheError -->` on the line above the program's fence.",
            )
        )
    if block.raises and not program.error:
        faults.append(
            block.fault(
                f"the program raises {block.raises}, but the page does not show the message",
                'Add a block ```text title="Error" after it; `make docs-update` fills it in.',
            )
        )
    if block.skip and block.language == "python":
        faults.append(
            block.fault(
                "a python block cannot be skipped",
                "Make it a program that runs without a network, or describe it in prose.",
            )
        )
    return faults
