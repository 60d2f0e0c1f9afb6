"""The hooks of the site: doctests as programs, run information, notebooks, folding, tables, and requirements."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.config import load_config

from docs.blocks import ROOT, Block
from docs.overrides import load_override
from docs.report import Report, describe_run
from docs.run import RunResult


def test_doctests_become_a_complete_program() -> None:
    docstrings = load_override("docstrings")
    text = "Twice.\n\n>>> import math\n>>> double(np.array([1]))\narray([2])\n>>> math.inf, 1\n(inf, 1)\n"
    known = {"np": ("", "numpy as np"), "double": ("twice", "double")}
    rendered = docstrings.with_programs(text, known)
    assert rendered == (
        "Twice.\n\n"
        "```python\nimport math\nimport numpy as np\nfrom twice import double\n\n"
        "print(repr(double(np.array([1]))))\nprint((math.inf, 1))\n```\n\n"
        '```text title="Output"\narray([2])\n(inf, 1)\n```\n\n'
    )


@pytest.mark.parametrize(
    ("file", "name", "module"),
    [
        ("handlers/model_handler.py", "ModelHandler", "runinference"),
        ("testing/conformance.py", "check_handler", "runinference.testing"),
        ("frameworks/huggingface/pipeline.py", "PredictionResult", "runinference"),
        ("frameworks/huggingface/tasks.py", "PipelineTask", "runinference.huggingface_inference"),
        ("pytorch_inference.py", "PytorchModelHandlerTensor", "runinference.pytorch_inference"),
        ("remote/http_client.py", "EndpointError", "runinference.errors"),
    ],
)
def test_doctests_import_names_from_public_modules(file: str, name: str, module: str) -> None:
    names = load_override("docstrings").known_names(ROOT / "src" / "runinference" / file)
    assert names[name] == (module, name)


@pytest.fixture(scope="module")
def site_config() -> Any:
    """The configuration of the site, with its plugins ready to render the API reference."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    config.plugins["mkdocstrings"].on_config(config)
    return config


def test_the_plain_reference_has_the_same_objects_as_the_site(site_config: Any) -> None:
    plain = load_override("plain")
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    text = plain.plain_markdown(page, site_config)
    assert text.startswith("# runinference.errors\n")
    assert "## runinference.errors.EndpointError" in text
    assert "| `EndpointError` |" in text
    assert "PartialResult" not in text  # the page excludes it
    assert "## runinference.testing.check_handler" in plain.plain_markdown(
        "::: runinference.testing", site_config
    )


def highlighted_block(language: str, code: str, title: str = "") -> str:
    name = f'<span class="filename">{title}</span>' if title else ""
    return (
        f'<div class="language-{language} highlight">{name}<pre><span></span>'
        f'<code><span class="nb">{escape(code)}</span>\n</code></pre></div>'
    )


@pytest.fixture
def block() -> Block:
    return Block(ROOT / "docs" / "page.md", 1, 3, "python", "", 'import torch\nprint("<1>")\n')


def add_run_line(
    block: Block, html: str, result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> str:
    provenance = load_override("provenance")
    entry = describe_run(block, result)
    monkeypatch.setattr(provenance, "read_report", lambda _: {"blocks": {entry["key"]: entry}})
    config = SimpleNamespace(config_file_path=str(ROOT / "mkdocs.yml"))
    return provenance.on_page_content(html, config=config)


RESULT = RunResult("<1>\n", "", 0, 1.26, when="2026-11-24T22:00:00+00:00")


def test_a_line_below_the_output_shows_when_the_program_ran(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = (
        highlighted_block("python", block.text) + "\n" + highlighted_block("text", "<1>", "Output")
    )
    line = add_run_line(block, html, RESULT, monkeypatch).removeprefix(html)
    assert line.startswith('\n<p class="ran">Ran on 24 November 2026 in 1.3 s: Python 3.')
    assert "PyTorch 2." in line


def test_a_program_that_did_not_run_exactly_as_shown_has_no_such_line(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = highlighted_block("python", block.text.replace("1", "2"))
    assert add_run_line(block, html, RESULT, monkeypatch) == html


@pytest.mark.parametrize(
    ("code", "is_run"),
    [('pip install ".[sklearn]"', False), ("make demo", False), ("make demo\npython a.py", True)],
)
def test_commands_that_are_checked_instead_of_run_have_no_such_line(
    code: str, is_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block(ROOT / "docs" / "page.md", 1, 3, "shell", "", code)
    html = highlighted_block("shell", block.text)
    assert (add_run_line(block, html, RESULT, monkeypatch) != html) == is_run


def test_the_page_about_the_tests_summarizes_the_last_complete_run() -> None:
    format_last_run = load_override("provenance").format_last_run
    assert "built without the report" in format_last_run({})
    last = {"when": RESULT.when, "seconds": 600, "tests": 9, "failed": []}
    entry = {"block": "docs/why-runinference.md:3", "seconds": 1.0}
    text = format_last_run({"last": last, "blocks": {"k": entry, "l": entry}})
    assert (
        "24 November 2026: 9 tests in 10 minutes. It ran 2 different code blocks from 1 files."
        in text
    )
    assert "| `docs/why-runinference.md` | 2 | 2 |" in text


class Files:
    """The pages of a site with one page."""

    def get_file_from_path(self, path: str) -> Any:
        def relative(_: Any) -> str:
            return "../../batching/"

        known = path == "batching.md"
        return SimpleNamespace(url_relative_to=relative) if known else None


@pytest.mark.parametrize(
    ("link", "expected"),
    [("../batching.md#sizes", "../../batching/#sizes"), ("../gone.md", "../gone.md")],
)
def test_resolves_links_in_notebooks_and_warns_about_broken_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, link: str, expected: str
) -> None:
    caplog.set_level("WARNING")
    notebook = tmp_path / "a.ipynb"
    notebook.write_text('{"cells": []}', "utf-8")
    page = SimpleNamespace(
        file=SimpleNamespace(src_uri="notebooks/a.ipynb", abs_src_path=str(notebook)), meta={}
    )
    html = (
        f'<script src="https://elsewhere"></script><div class="jupyter-wrapper"><a href="{link}">'
    )
    config = SimpleNamespace(config_file_path=str(tmp_path / "mkdocs.yml"))
    resolved = load_override("notebooks").on_page_content(
        html, page=page, files=Files(), config=config
    )
    assert f'href="{expected}"' in resolved
    assert "elsewhere" not in resolved
    assert ("does not exist" in caplog.text) == ("gone" in link)


def test_folds_the_lines_outside_an_excerpt_and_copies_all_lines() -> None:
    html = highlighted_block("python", "a = '<1>'\nb = 2\nc = 3\nd = 4")
    folded = load_override("folding").on_page_content(f"<!-- shows: 2, 4 -->\n{html}")
    assert 'data-copy="a = &#x27;&lt;1&gt;&#x27;\nb = 2\nc = 3\nd = 4"' in folded
    assert folded.count('<span class="folded">') == 2
    assert '<span class="folded">c = 3\n</span>' in folded
    assert "Show the full example (4 lines)" in folded


def test_a_highlighted_line_is_folded_with_its_tags() -> None:
    folding = load_override("folding")
    code = '<span class="hll">one\n</span>two\n<span class="hll">three\n</span>'
    assert folding._LINE.findall(code) == [
        '<span class="hll">one\n</span>',
        "two\n",
        '<span class="hll">three\n</span>',
    ]


def render_table(*rows: list[str]) -> str:
    import markdown

    lines = ["|" + "|".join(row) + "|" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return markdown.markdown("\n".join(lines), extensions=["tables"])


def test_cells_of_a_three_column_table_have_the_name_of_their_column() -> None:
    html = render_table(
        ["you have", '`say` "so"', "costs"], ["one", "", "2"], ["two", "<b>this</b>", "3"]
    )
    labelled = load_override("tables").on_page_content(html)
    assert labelled.startswith('<table data-columns="3">')
    assert labelled.count('data-label="say &quot;so&quot;"') == 2
    assert '<td data-label="costs">3</td>' in labelled
    assert labelled.count("<td>") == 2
    assert labelled.replace(' data-columns="3"', "").count("<tr>") == html.count("<tr>")


def test_two_column_tables_need_no_names_and_wide_tables_keep_their_layout() -> None:
    html = render_table(["option", "says"], ["a", "b"])
    assert load_override("tables").on_page_content(html) == html.replace(
        "<table>", '<table data-columns="2">'
    )
    wide = render_table(["a", "b", "c", "d", "e"], ["1", "2", "3", "4", "5"])
    assert load_override("tables").on_page_content(wide) == wide
    frame = html.replace("<td>a</td>", "<th>0</th>")
    assert load_override("tables").on_page_content(frame) == frame


def test_module_names_can_wrap_after_the_dot() -> None:
    title = '<h1 id="runinference.errors" class="doc"><span>runinference.errors</span></h1>'
    text = "<p>runinference.errors</p>"
    assert load_override("hooks").on_page_content(title + text) == (
        title.replace("<span>runinference.", "<span>runinference.<wbr>") + text
    )


def test_tooltips_show_public_paths_only() -> None:
    link = '<a title="runinference.X (runinference.handlers.x.X)" href="#x"></a>'
    html = link + '<span title="runinference.{}"></span>'
    assert load_override("hooks").on_post_page(html.format("handlers.x.T")) == (
        '<a title="runinference.X" href="#x"></a><span></span>'
    )
    assert 'title="runinference.errors.E"' in load_override("hooks").on_post_page(
        html.format("errors.E")
    )


def test_the_report_keeps_the_entries_of_other_pages(tmp_path: Path) -> None:
    def report_run(*names: str, passed: bool = True) -> dict[str, Any]:
        report = Report(tmp_path, is_complete=False)
        for name in names:
            block = {"key": name, "block": f"docs/{name[0]}.md:{name[1]}"}
            report.pytest_runtest_logreport(
                SimpleNamespace(when="call", passed=passed, user_properties=[("block", block)])
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("PYTEST_XDIST_WORKER", raising=False)
            report.pytest_sessionfinish()
        return json.loads((tmp_path / report.file).read_text("utf-8"))["blocks"]

    assert list(report_run("a1", "a2", "b1")) == ["a1", "a2", "b1"]
    assert list(report_run("a1", "a3")) == ["a1", "a3", "b1"]  # a2 was removed from its page
    assert list(report_run("b1", passed=False)) == ["a1", "a3"]  # failed blocks are not listed


def add_requirements(markdown: str, place: str = "guides/one.md") -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
    return load_override("needs").on_page_markdown(markdown, page=page)


@pytest.mark.parametrize(
    ("imports", "command"),
    [
        (
            "import spacy\nfrom runinference import samples\nsamples.held_out_digits()",
            '".[sklearn]" spacy',
        ),
        ("import torch, transformers", '".[transformers]"'),
        ("import torchvision, transformers", '".[torch,transformers]"'),
        ("import xgboost, sklearn.datasets, pandas", '".[xgboost]"'),
        ("from runinference.sklearn_inference import SklearnModelHandlerNumpy", '".[sklearn]"'),
        ("from apache_beam.io import ReadFromCsv", '".[sklearn]"'),
        ('handler = handler.with_cache("results")', '".[cache]"'),
        ("from runinference.samples import digits_shufflenet", '".[torch]"'),
        ("from runinference.openai_inference import OpenAIModelHandler", '".[remote]"'),
        ("import spacy", ". spacy"),
    ],
)
def test_a_page_shows_the_command_that_installs_what_its_examples_import(
    imports: str, command: str
) -> None:
    page = f"# One\n\nWords.\n\n```python\n{imports}\n```\n"
    clone = "[clone of the repository](../index.md#install)"
    line = f"*To run the examples on this page: `pip install {command}` in a {clone}.*"
    assert add_requirements(page) == page.replace("# One\n\n", f"# One\n\n{line}\n\n")


def test_a_notebook_shows_what_it_needs_unless_its_text_contains_the_command(
    tmp_path: Path,
) -> None:
    notebook = tmp_path / "one.ipynb"

    def download_line(text: str) -> str:
        sources = {"markdown": text, "code": "%pip --version\nimport sklearn, matplotlib"}
        cells = [{"cell_type": kind, "source": [source]} for kind, source in sources.items()]
        notebook.write_text(json.dumps({"cells": cells}), "utf-8")
        return load_override("notebooks")._download_line("one.ipynb", notebook)

    command = "pip install &quot;.[sklearn]&quot; matplotlib notebook"
    assert command in download_line("Run it.")
    assert command in download_line('Run it: `pip install ".[sklearn]" notebook`.')
    complete = download_line('Run it: `pip install ".[sklearn]" matplotlib notebook`.')
    assert "pip install" not in complete


def test_a_page_that_needs_nothing_or_has_a_complete_command_shows_no_other_command() -> None:
    page = "# One\n\nWords.\n\n```python\n{}\n```\n"
    for nothing in ("import apache_beam, os, yaml", "import runinference", "this is no Python"):
        assert add_requirements(page.format(nothing)) == page.format(nothing)
    needed = page.format("import sklearn, torch, spacy")
    complete = f'{needed}\n```shell\npip install ".[torch,sklearn]" spacy\n```\n'
    assert add_requirements(complete) == complete
    incomplete = f'{needed}\n```shell\npip install ".[sklearn]" spacy\n```\n'
    assert '`pip install ".[sklearn,torch]" spacy`' in add_requirements(incomplete)


def test_a_module_from_an_unknown_package_fails_the_build() -> None:
    with pytest.raises(
        LookupError, match=r"imports seaborn\.objects, which no extra or package provides"
    ):
        add_requirements("# One\n\n```python\nimport seaborn.objects\n```\n")


@pytest.mark.parametrize(
    ("repository", "site"),
    [
        ("https://github.com/Owner/name", "https://owner.github.io/name/"),
        ("https://gitlab.com/group/team/name/", "https://group.gitlab.io/team/name/"),
        ("https://git.example.com/name", "https://git.example.com/name/"),
    ],
)
def test_the_address_of_the_site_follows_from_the_address_of_the_repository(
    monkeypatch: pytest.MonkeyPatch, repository: str, site: str
) -> None:
    monkeypatch.setenv("REPO_URL", repository)
    publishing = load_override("publishing")
    config = publishing.on_config(load_config(str(ROOT / "mkdocs.yml")))
    assert config.site_url == site
    assert (
        publishing.source_url(config, "README.md")
        == f"{repository.rstrip('/')}/edit/main/README.md"
    )
    monkeypatch.setenv("SITE_URL", "https://docs.example.com/")
    assert (
        publishing.on_config(load_config(str(ROOT / "mkdocs.yml"))).site_url
        == "https://docs.example.com/"
    )


def test_pages_name_the_repository_of_the_publisher() -> None:
    publishing = load_override("publishing")
    config = load_config(str(ROOT / "mkdocs.yml"))
    assert config.repo_url == publishing.PLACEHOLDER
    config.repo_url = "https://github.com/owner/name"
    file = SimpleNamespace(src_uri="one.md")
    page = SimpleNamespace(file=file, meta={"description": "One."})
    text = f"# One\n\ngit clone {publishing.PLACEHOLDER}.git\n"
    assert "git clone https://github.com/owner/name.git" in publishing.on_page_markdown(
        text, page, config
    )


def test_a_description_is_the_first_sentence_without_markdown() -> None:
    describe = load_override("publishing").describe
    assert describe("# One\n\nRun it: one, `two`:\n\n```python\n```\n") == "Run it: one, two."
    assert (
        describe("# One\n\n*Note.*\n\nRun `a_b` on [the **big** page](a.md). More.")
        == "Run a_b on the big page."
    )
