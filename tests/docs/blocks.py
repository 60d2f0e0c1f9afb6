"""Code blocks on pages, and the problems that are reported for them."""

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
class Problem:
    """A problem on a page: where it is, what is wrong, and how to fix it."""

    path: Path
    line: int
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{display_path(self.path)}:{self.line}: {self.message}\n    {self.hint}"


@dataclass(frozen=True)
class Block:
    """A fenced block, as the site shows it.

    Attributes:
        path: The file that contains the block.
        line: Line of the opening fence, counted from 1.
        end_line: Line of the closing fence.
        language: The word after the three backticks.
        title: The title of the block, or an empty string.
        code: The text between the fences, without `indent`.
        indent: Whitespace before the opening fence.
        directives: Comments above the fence, by name.
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
        """The file and the lines, as in the test IDs of pytest-examples."""
        return f"{display_path(self.path)}:{self.line}-{self.end_line}"

    @property
    def text(self) -> str:
        """The text that is copied and run: the code without trailing whitespace.

        The theme's copy button also strips trailing whitespace.
        """
        return self.code.rstrip()

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.title in TITLES

    @property
    def draws(self) -> str | None:
        """The direction, `LR` or `TD`, if this is a diagram of the pipeline in the program above."""
        return self.directives.get("draws")

    @property
    def role(self) -> str | None:
        """What this block shows of the program above: `output`, `error`, `diagram`, or nothing."""
        if self.language == "mermaid" and self.draws:
            return "diagram"
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
        """The patterns of the parts that may differ between runs, by name."""
        return dict(_PAIR.findall(self.directives.get("varies", "")))

    def problem(self, message: str, hint: str) -> Problem:
        return Problem(self.path, self.line, message, hint)


@dataclass(frozen=True)
class Program:
    """A block that runs, with the blocks that show its output, its error, and its pipeline."""

    block: Block
    output: Block | None = None
    error: Block | None = None
    diagram: Block | None = None


def display_path(path: Path) -> str:
    """Return the path relative to the root of the project."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def suggest(word: str, known: tuple[str, ...]) -> str:
    """Return `Did you mean ...?`, or all choices if no known word is similar."""
    close = get_close_matches(word, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Choose one of: {', '.join(known)}."


def attach_outputs(blocks: list[Block]) -> tuple[list[Program], list[Problem]]:
    """Return the programs on a page with their outputs, and the problems with these pairs."""
    programs: list[Program] = []
    problems: list[Problem] = []
    current: Block | None = None
    attached: dict[str, Block] = {}
    for block in [*blocks, None]:
        if block is not None and (role := block.role):
            if current is None or role in attached:
                problems.append(
                    block.problem(
                        f"this {role} block doesn't follow a program",
                        "Put it right after the python or shell block that it belongs to.",
                    )
                )
            else:
                attached[role] = block
            continue
        if current is not None:
            programs.append(Program(current, **attached))
        current = block if block is not None and block.language in RUN else None
        attached = {}
    for program in programs:
        problems += _check_program(program)
    return programs, problems


def _check_program(program: Program) -> list[Problem]:
    block, problems = program.block, []
    if program.error and not block.raises:
        problems.append(
            program.error.problem(
                "an error is shown, but the program above is not expected to fail",
                "Write `<!-- raises: NameOfTheError -->` on the line above the program's fence.",
            )
        )
    if block.raises and not program.error:
        problems.append(
            block.problem(
                f"the program raises {block.raises}, but the page doesn't show the message",
                'Add a block ```text title="Error" after it; `make docs-update` fills it in.',
            )
        )
    if block.skip and block.language == "python":
        problems.append(
            block.problem(
                "a python block can't be skipped",
                "Change it so that it runs without a network, or describe it in prose.",
            )
        )
    return problems
