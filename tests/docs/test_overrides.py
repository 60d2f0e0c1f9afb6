"""What the site does to pages: programs of docstrings, provenance, notebooks, pages as plain text."""

from __future__ import annotations

import importlib.util
import json
import sys
from html import escape
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from docs.blocks import ROOT, Block
from docs.report import Report, told
from docs.run import Ran


def override(name: str) -> ModuleType:
    file = ROOT / "docs" / "overrides" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"override_{name}", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_doctests_of_a_docstring_become_a_program_with_its_imports() -> None:
    docstrings = override("docstrings")
    text = "Twice.\n\n>>> import math\n>>> double(np.array([1]))\narray([2])\n>>> math.inf, 1\n(inf, 1)\n"
    known = {"np": ("", "numpy as np"), "double": ("twice", "double")}
    shown = docstrings.with_programs(text, known)
    assert shown == (
        "Twice.\n\n"
        "```python\nimport math\nimport numpy as np\nfrom twice import double\n\n"
        "print(repr(double(np.array([1]))))\nprint((math.inf, 1))\n```\n\n"
        '```text title="Output"\narray([2])\n(inf, 1)\n```\n\n'
    )


def highlighted(language: str, code: str, title: str = "") -> str:
    name = f'<span class="filename">{title}</span>' if title else ""
    return (
        f'<div class="language-{language} highlight">{name}<pre><span></span>'
        f'<code><span class="nb">{escape(code)}</span>\n</code></pre></div>'
    )


@pytest.fixture
def block() -> Block:
    return Block(ROOT / "docs" / "page.md", 1, 3, "python", "", 'import torch\nprint("<1>")\n')


def shown(block: Block, html: str, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> str:
    provenance = override("provenance")
    entry = told(block, ran)
    monkeypatch.setattr(provenance, "report", lambda _: {"blocks": {entry["key"]: entry}})
    config = SimpleNamespace(config_file_path=str(ROOT / "mkdocs.yml"))
    return provenance.on_page_content(html, config=config)


RAN = Ran("<1>\n", "", 0, 1.26, when="2026-11-24T22:00:00+00:00")


def test_under_a_program_and_its_output_stands_where_and_when_it_ran(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = highlighted("python", block.text) + "\n" + highlighted("text", "<1>", "Output")
    line = shown(block, html, RAN, monkeypatch).removeprefix(html)
    assert line.startswith('\n<p class="ran">Ran on 24 November 2026 in 1.3 s: Python 3.')
    assert "PyTorch 2." in line


def test_a_program_that_did_not_run_as_it_stands_has_no_such_line(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = highlighted("python", block.text.replace("1", "2"))
    assert shown(block, html, RAN, monkeypatch) == html


def test_the_page_about_the_tests_tells_of_the_last_whole_run() -> None:
    last_run = override("provenance").last_run
    assert "built without the report" in last_run({})
    last = {"when": RAN.when, "seconds": 600, "tests": 9, "failed": []}
    entry = {"block": "docs/why.md:3", "seconds": 1.0}
    text = last_run({"last": last, "blocks": {"k": entry, "l": entry}})
    assert (
        "24 November 2026: 9 tests in 10 minutes. It ran 2 different programs of 1 files." in text
    )
    assert "| `docs/why.md` | 2 | 2 |" in text


class Files:
    """The pages of a site with one page."""

    def get_file_from_path(self, path: str) -> Any:
        def relative(_: Any) -> str:
            return "../../batching/"

        known = path == "batching.md"
        return SimpleNamespace(url_relative_to=relative) if known else None


@pytest.mark.parametrize(
    ("link", "becomes"),
    [("../batching.md#sizes", "../../batching/#sizes"), ("../gone.md", "../gone.md")],
)
def test_links_of_notebooks_lead_to_pages_and_dead_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, link: str, becomes: str
) -> None:
    notebook = tmp_path / "a.ipynb"
    notebook.write_text('{"cells": []}', "utf-8")
    page = SimpleNamespace(
        file=SimpleNamespace(src_uri="notebooks/a.ipynb", abs_src_path=str(notebook)), meta={}
    )
    html = (
        f'<script src="https://elsewhere"></script><div class="jupyter-wrapper"><a href="{link}">'
    )
    config = SimpleNamespace(config_file_path=str(tmp_path / "mkdocs.yml"))
    mended = override("notebooks").on_page_content(html, page=page, files=Files(), config=config)
    assert f'href="{becomes}"' in mended
    assert "elsewhere" not in mended
    assert ("there is no such page" in caplog.text) == ("gone" in link)


def test_an_excerpt_folds_the_other_lines_and_the_whole_program_is_copied() -> None:
    html = highlighted("python", "a = '<1>'\nb = 2\nc = 3\nd = 4")
    folded = override("folding").on_page_content(f"<!-- shows: 2, 4 -->\n{html}")
    assert 'data-copy="a = &#x27;&lt;1&gt;&#x27;\nb = 2\nc = 3\nd = 4"' in folded
    assert folded.count('<span class="folded">') == 2
    assert '<span class="folded">c = 3\n</span>' in folded
    assert "Show the whole program (4 lines)" in folded


def test_a_marked_line_is_folded_whole() -> None:
    folding = override("folding")
    code = '<span class="hll">one\n</span>two\n<span class="hll">three\n</span>'
    assert folding._LINE.findall(code) == [
        '<span class="hll">one\n</span>',
        "two\n",
        '<span class="hll">three\n</span>',
    ]


def table(*rows: list[str]) -> str:
    import markdown

    lines = ["|" + "|".join(row) + "|" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return markdown.markdown("\n".join(lines), extensions=["tables"])


def test_a_table_of_three_columns_knows_the_column_of_each_cell() -> None:
    html = table(["you have", '`say` "so"', "costs"], ["one", "", "2"], ["two", "<b>this</b>", "3"])
    shown = override("tables").on_page_content(html)
    assert shown.startswith('<table data-columns="3">')
    assert shown.count('data-label="say &quot;so&quot;"') == 2
    assert '<td data-label="costs">3</td>' in shown
    assert shown.count("<td>") == 2
    assert shown.replace(' data-columns="3"', "").count("<tr>") == html.count("<tr>")


def test_a_table_of_two_columns_needs_no_names_and_wider_ones_keep_their_shape() -> None:
    html = table(["option", "says"], ["a", "b"])
    assert override("tables").on_page_content(html) == html.replace(
        "<table>", '<table data-columns="2">'
    )
    wide = table(["a", "b", "c", "d", "e"], ["1", "2", "3", "4", "5"])
    assert override("tables").on_page_content(wide) == wide
    frame = html.replace("<td>a</td>", "<th>0</th>")
    assert override("tables").on_page_content(frame) == frame


def test_the_name_of_a_module_may_break_after_its_dot() -> None:
    title = '<h1 id="runinference.errors" class="doc"><span>runinference.errors</span></h1>'
    text = "<p>runinference.errors</p>"
    assert override("hooks").on_page_content(title + text) == (
        title.replace("<span>runinference.", "<span>runinference.<wbr>") + text
    )


def test_the_report_keeps_what_it_knew_of_other_pages(tmp_path: Path) -> None:
    def ran(*names: str, passed: bool = True) -> dict[str, Any]:
        report = Report(tmp_path, whole=False)
        for name in names:
            block = {"key": name, "block": f"docs/{name[0]}.md:{name[1]}"}
            report.pytest_runtest_logreport(
                SimpleNamespace(when="call", passed=passed, user_properties=[("block", block)])
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("PYTEST_XDIST_WORKER", raising=False)
            report.pytest_sessionfinish()
        return json.loads((tmp_path / report.file).read_text("utf-8"))["blocks"]

    assert list(ran("a1", "a2", "b1")) == ["a1", "a2", "b1"]
    assert list(ran("a1", "a3")) == ["a1", "a3", "b1"]  # a2 is gone from its page
    assert list(ran("b1", passed=False)) == ["a1", "a3"]  # what failed is no proof


def needs(markdown: str, place: str = "guides/one.md") -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
    return override("needs").on_page_markdown(markdown, page=page)


def test_a_page_names_the_extras_and_packages_of_its_programs() -> None:
    page = "# One\n\nWords.\n\n```python\n{}\n```\n"
    imports = "import spacy\nfrom runinference import RunInference, samples\nimport xgboost"
    told = (
        "the extras `sklearn` and `xgboost` and the package `spacy`: [install](../index.md#install)"
    )
    assert needs(page.format(imports)) == page.format(imports).replace(
        "# One\n\n", f"# One\n\n*The programs of this page need {told}.*\n\n"
    )
    assert "the extra `transformers`:" in needs(page.format("import torch, transformers"), "one.md")
    for nothing in ("import apache_beam, os", "import runinference", "this is no Python"):
        assert needs(page.format(nothing)) == page.format(nothing)


def test_a_module_that_no_extra_brings_fails_the_build() -> None:
    with pytest.raises(LookupError, match="what brings seaborn"):
        needs("# One\n\n```python\nimport seaborn.objects\n```\n")
