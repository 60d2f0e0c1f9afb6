"""Finds stilted words and phrases in prose: on pages, in notebooks, docstrings, and comments."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from docs.blocks import ROOT, Problem

PHRASES = {
    # Archaic or literary words.
    r"lest": "so that ... not",
    r"anew|afresh": "again",
    r"once more": "again",
    r"mend(?:s|ed|ing)?": "fix",
    r"cures?(?!:)": "fix, hint",
    r"foresee\w*": "predict, support",
    r"shall": "must, will",
    r"thus|hence": "so",
    r"whilst|amongst": "while, among",
    r"whatever|whoever": "any, anyone who, all",
    r"(?:where|there|here)(?:by|in|of|upon|with|after)|whence|whither|hitherto|henceforth": "a plain word",
    r"insofar|inasmuch|notwithstanding|albeit": "a plain word",
    r"upon": "on, when",
    r"wish(?:es|ed)?": "want",
    r"at will": "freely, any",
    r"at last": "finally",
    r"a (?:great|good) many": "many",
    r"nothing but": "only",
    r"is as good": "also works",
    # Word order and expressions of other languages.
    r"of (?:your|its|their|our|his|her) own(?=[.,;:)|]|$| (?:and|are|as|can|for|in|is|must|on|to|with)\b)": (
        "your own ..., a separate ..."
    ),
    r"as (?:it|they) comes?": "in order of arrival",
    r"so many\b(?![^.;]*\bthat)": "this many",
    r"form(?:s|ed)? by (?:itself|themselves)": "Batching is automatic",
    r"in place of": "instead of",
    r"beside": "next to, with, in addition to",
    r"aside\b(?! from)": "dead letter, separately",
    r"near(?:er)? to|most nearly": "close to, most similar",
    r"(?:a|one|the|per|each) processors?": "CPU",
    r"bare loop": "plain loop, baseline",
    r"the slowest (?:1|one) (?:%|percent)": "p99",
    r"programs? (?:on|of) (?:this|the|these) (?:pages?|sites?)|programs? (?:above|below)": "example, snippet",
    r"#+ (?:the )?programs?": "a heading that names the subject",
    # Models, pages and handlers are not people.
    r"(?:is|are|was|were|be|been|being) told|told": "receives, is set to",
    r"says(?! otherwise)": "shows, states, raises",
    r"speaks?\b(?! to)": "returns, supports",
    r"stands\b(?! for| out)": "is",
    r"(?:model|handler|page|pipeline|batch|transform|library|runner|worker)s? "
    r"(?:knows?|wants?|wish\w*|thinks?|forgets?|remembers?|believes?)": "a plain verb",
    r"(?<!connection\s)(?<!connection\swas\s)(?<!model\s)refus(?:es?|ed|al)": "rejects, raises an error",
    r"lend(?:s|ing)?|lent": "shares, acquires",
    r"gather(?:s|ed|ing)?": "batch, collect",
    r"puts? away|putting away": "evict, unload",
    r"g[ia]ve[sn]? up|giving up": "times out, stops, fails",
    r"g[ia]ve[sn]? back": "return",
    r"tak(?:es?|en|ing) along": "include",
    r"lets? go of": "release",
    # British spelling.
    r"(?:colour|behaviour|favour|neighbour|tumour|honour|labour)\w*": "American spelling: -or",
    r"(?:catalogue|dialogue)s?": "catalog, dialog",
    r"(?:de)?(?:customi|generali|initiali|maximi|minimi|normali|optimi|organi|paralleli|quanti|recogni|seriali|"
    r"speciali|standardi|summari|synchroni|tokeni|utili|vectori|visuali)s(?:es?|ed|ing|ations?|ers?)": "-ize",
    r"analys(?:e|ed|ing)|(?:mode|labe|trave|signa)ll(?:ed|ing)|centre[sd]?|grey|licence|artefacts?|learnt|spelt": (
        "American spelling"
    ),
}
"""Patterns of whole words that prose must not contain, and what to write instead. A space matches a line break."""

_WORDS = "|".join(f"({pattern})".replace(" ", r"\s+") for pattern in PHRASES)
_STILTED = re.compile(rf"(?<![\w-])(?:{_WORDS})(?![\w-])", re.IGNORECASE)
_INSTEAD = list(PHRASES.values())
_FENCED = re.compile(
    r"^[ \t>]*(`{3,}|~{3,})[^`\n]*\n.*?^[ \t>]*\1`*[ \t]*$", re.DOTALL | re.MULTILINE
)
_NO_PROSE = re.compile(
    r"<!--.*?-->"  # comments
    r"|(`+)(?!`).+?(?<!`)\1(?!`)"  # code
    r"|(?<=\])\([^)\s]*\)"  # targets of links
    r"|<[^>\n]+>|https?://\S+|\{[^}\n]*\}"  # tags, addresses, and attributes
    r"|^[ \t]*>>>.*?(?=^[ \t]*$|\Z)"  # doctests
    r"|^::: .*\n(?:    .*\n?)*",  # objects of the API reference
    re.DOTALL | re.MULTILINE,
)


def find_files(root: Path = ROOT) -> list[Path]:
    """Return the files that contain prose."""
    pages = [*(root / "docs").rglob("*.md"), *(root / "docs").rglob("*.ipynb")]
    pages += [root / "README.md", root / "CONTRIBUTING.md"]
    modules = [*(root / "src").rglob("*.py"), *(root / "examples").rglob("*.py")]
    hidden = {"overrides", ".ipynb_checkpoints"}
    return sorted(path for path in pages + modules if not hidden & set(path.parts))


def check_file(path: Path) -> list[Problem]:
    """Return the stilted phrases in a file."""
    text = path.read_text("utf-8")
    pieces = _READERS[path.suffix](text)
    return [
        Problem(path, line + piece.count("\n", 0, start), f"“{phrase}”", f"Write: {instead}")
        for line, piece in pieces
        for start, phrase, instead in find_phrases(piece)
    ]


def find_phrases(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the offset of each stilted phrase in Markdown, the phrase, and what to write instead."""
    prose = _NO_PROSE.sub(_blank, _FENCED.sub(_blank, text))
    for match in _STILTED.finditer(prose):
        yield match.start(), " ".join(match[0].split()), _INSTEAD[match.lastindex - 1]


def _blank(match: re.Match[str]) -> str:
    """Return a text of the same length and lines that contains no words."""
    return re.sub(r"[^\n]", "\0", match[0])


def _read_markdown(text: str) -> Iterator[tuple[int, str]]:
    yield 1, text


def _read_notebook(text: str) -> Iterator[tuple[int, str]]:
    """Yield the Markdown cells, each as one line, with the line of the file on which it begins."""
    lines = text.splitlines()
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "markdown":
            mark = f'"id": "{cell["id"]}"'
            first = next(number for number, line in enumerate(lines, 1) if mark in line)
            yield first, _FENCED.sub("", "".join(cell["source"])).replace("\n", " ")


def _read_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield the docstrings and the comments, with consecutive lines of a comment in one piece."""
    docstrings = {
        (node.lineno, node.col_offset)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    comment: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING and token.start in docstrings:
            yield token.start[0], token.string
        if token.type == tokenize.COMMENT:
            if comment and token.start[0] != last + 1:
                yield last - len(comment) + 1, "\n".join(comment)
                comment = []
            comment.append(token.string.lstrip("#: "))
            last = token.start[0]
    if comment:
        yield last - len(comment) + 1, "\n".join(comment)


_READERS = {".md": _read_markdown, ".ipynb": _read_notebook, ".py": _read_python}
