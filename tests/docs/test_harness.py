"""The documentation tests find each kind of problem, and report its location and a hint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from pytest_examples import EvalExample, find_examples

from docs import run_cache, site_reader
from docs.blocks import ROOT, Problem
from docs.collect import compare_parsers, read_all, set_style
from docs.compare import check_run
from docs.ledger import skipped_blocks, stubbed_lines
from docs.page_selection import changed_pages
from docs.run import FreshInterpreter, Interpreter, run
from docs.run_cache import RunCache, environment_key
from docs.update import needed_changes, rewrite

Page = Callable[[str], Path]
Check = Callable[[str], list[Problem]]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(dedent(text), "utf-8")
        return path

    return write


@pytest.fixture
def check(page: Page, fork_server: Interpreter, env: dict[str, str]) -> Check:
    """Return a function that finds all problems of a page."""

    def find_problems(text: str) -> list[Problem]:
        programs, _, found = read_all([page(text)])
        for program in programs:
            found += check_run(program, run(program, fork_server, env))
        return found

    return find_problems


def as_text(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


GOOD_PAGE = """
    # A page

    ```python
    print("one")
    print("two")
    ```

    You can put text here.

    ```text title="Output"
    one
    two
    ```

    !!! note

        <!-- raises: FileNotFoundError -->
        ```python
        with open("missing.txt"):
            pass
        ```

        ```text title="Error"
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.txt'
        ```
    """


def test_a_good_page_passes(check: Check) -> None:
    assert not check(GOOD_PAGE)


@pytest.mark.parametrize("text", ["GOOD_PAGE", "DIAGRAM"])
def test_a_good_page_also_passes_in_new_interpreters(
    text: str, page: Page, env: dict[str, str]
) -> None:
    programs, _, problems = read_all([page(globals()[text])])
    for program in programs:
        problems += check_run(program, run(program, FreshInterpreter(env), env))
    assert not problems


def test_lines_of_output_can_be_in_any_order_if_the_title_allows_it(check: Check) -> None:
    text = """
        ```python
        print("one")
        print("two")
        ```

        ```text title="{}"
        two
        one
        ```
        """
    assert not check(text.format("Output (any order)"))
    assert "the output is different" in as_text(check(text.format("Output")))


def test_only_the_named_parts_of_an_output_can_vary(check: Check) -> None:
    text = """
        ```python
        print("{} images in 1.25 s")
        ```

        <!-- varies: seconds="[0-9.]+(?= s)" -->
        ```text title="Output"
        10 images in 7.75 s
        ```
        """
    assert not check(text.format(10))
    assert "-10 images in <seconds> s" in as_text(check(text.format(11)))


BAD_PAGES = {
    "a program that fails": (
        """
        ```python
        print(undefined)
        ```
        """,
        3,
        "NameError: name 'undefined' is not defined",
    ),
    "an outdated output": (
        """
        ```python
        print(2)
        ```

        ```text title="Output"
        1
        ```
        """,
        6,
        "`make docs-update`",
    ),
    "an output that the page does not show": (
        """
        ```python
        print(2)
        ```
        """,
        2,
        "prints text that the page doesn't show",
    ),
    "an output without a program": (
        """
        ```text title="Output"
        1
        ```
        """,
        2,
        "doesn't follow a program",
    ),
    "no error although `raises` names one": (
        """
        <!-- raises: ValueError -->
        ```python
        int("1")
        ```

        ```text title="Error"
        ValueError: no
        ```
        """,
        3,
        "should raise ValueError, but ends without an error",
    ),
    "an error of another class": (
        """
        <!-- raises: KeyError -->
        ```python
        int("one")
        ```

        ```text title="Error"
        KeyError: no
        ```
        """,
        3,
        "should raise KeyError, but fails with",
    ),
    "an error with another message": (
        """
        <!-- raises: ValueError -->
        ```python
        int("one")
        ```

        ```text title="Error"
        ValueError: no
        ```
        """,
        7,
        "+ValueError: invalid literal for int()",
    ),
    "an error without `raises`": (
        """
        ```python
        int("one")
        ```

        ```text title="Error"
        ValueError: no
        ```
        """,
        6,
        "`<!-- raises: NameOfTheError -->`",
    ),
    "an error message that the page does not show": (
        """
        <!-- raises: ValueError -->
        ```python
        int("one")
        ```
        """,
        3,
        "doesn't show the message",
    ),
    "an unknown option": (
        """
        ```python titel="x"
        x = 1
        ```
        """,
        2,
        "Did you mean `title`?",
    ),
    "an unknown directive": (
        """
        <!-- raise: ValueError -->
        ```python
        x = 1
        ```
        """,
        2,
        "Did you mean `raises`?",
    ),
    "a misspelled title": (
        """
        ```python
        x = 1
        ```

        ```text title="output"
        x
        ```
        """,
        6,
        "Did you mean `Output`?",
    ),
    "an unsupported language": (
        """
        ```bash
        ls
        ```
        """,
        2,
        "Write ```shell.",
    ),
    "a fence with tildes": (
        """
        ~~~python
        x = 1
        ~~~
        """,
        2,
        "Write three backticks",
    ),
    "a fence with braces": (
        """
        ``` { .python }
        x = 1
        ```
        """,
        2,
        "without braces",
    ),
    "a block inside a comment": (
        """
        ```python
        x = 1
        ```

        <!--
        ```python
        x = 2
        ```
        -->
        """,
        7,
        "keep it out of HTML comments",
    ),
    "a block inside a block quote": (
        """
        > ```python
        > x = 1
        > ```
        """,
        2,
        "Use an admonition",
    ),
    "a fence that is not closed": (
        """
        ```python
        x = 1
        """,
        2,
        "Close it",
    ),
    "a page without a block": ("Nothing.", 1, "no block was found at all"),
    "an empty program": (
        """
        ```python
        ```
        """,
        2,
        "an empty block",
    ),
    "a pattern that matches nothing": (
        """
        ```python
        print(1)
        ```

        <!-- varies: rate="[0-9]+ per second" -->
        ```text title="Output"
        1
        ```
        """,
        7,
        "the pattern of `rate` matches nothing",
    ),
    "an invalid pattern": (
        """
        ```python
        print(1)
        ```

        <!-- varies: [0-9]+ -->
        ```text title="Output"
        1
        ```
        """,
        7,
        'Write name="regular expression"',
    ),
    "an excerpt with missing lines": (
        """
        <!-- shows: 1-3 -->
        ```python
        x = 1
        ```
        """,
        3,
        "List lines of the block, from 1 to 1",
    ),
    "an excerpt that cannot be parsed": (
        """
        <!-- shows: the end -->
        ```python
        x = 1
        ```
        """,
        3,
        "can't parse `shows: the end`",
    ),
    "a skipped python block": (
        """
        <!-- skip: it is Sunday -->
        ```python
        x = 1
        ```
        """,
        3,
        "can't be skipped",
    ),
    "a command that fails": (
        """
        ```shell
        python missing.py
        ```
        """,
        2,
        "can't open file",
    ),
    "an extra that is not declared": (
        """
        ```shell
        pip install "runinference[sklaern]"
        ```
        """,
        2,
        "pyproject.toml declares",
    ),
    "a target that is not in the Makefile": (
        """
        ```shell
        make demmo
        ```
        """,
        2,
        "demmo",
    ),
}


@pytest.mark.parametrize("problem", BAD_PAGES)
def test_reports_the_line_of_a_problem_and_a_hint(check: Check, problem: str) -> None:
    text, line, words = BAD_PAGES[problem]
    found = check(text)
    assert words in as_text(found)
    assert line in {each.line for each in found}, as_text(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("~~~python\nx = 1\n~~~\n", "pytest-examples doesn't find it"),
        ("<!--\n```python\nx = 1\n```\n-->\n", "the site doesn't show it"),
        ("Words.\n\n    ```python\n    x = 1\n    ```\n", "the site doesn't show it"),
    ],
)
def test_reports_blocks_that_the_two_parsers_read_differently(
    page: Page, text: str, words: str
) -> None:
    path = page(text)
    blocks, _ = site_reader.read(path)
    assert words in as_text(compare_parsers(path, blocks))


def test_shell_blocks_run_and_the_ledger_lists_stubbed_and_skipped_code(
    check: Check, page: Page
) -> None:
    text = """
        ```shell
        pip install "runinference[sklearn]"
        make test
        echo done > file.txt
        cat file.txt
        ```

        ```text title="Output"
        done
        ```

        <!-- skip: needs a cluster -->
        ```shell
        submit job
        ```
        """
    _, blocks, problems = read_all([page(text)])
    assert not problems
    assert [entry.code for entry in stubbed_lines(blocks)] == [
        'pip install "runinference[sklearn]"',
        "make test",
    ]
    assert [entry.reason for entry in skipped_blocks(blocks)] == ["needs a cluster"]
    first = text.split("<!-- skip")[0]
    assert not check(first)


def test_blocks_in_docstrings_have_the_line_numbers_of_the_module(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        dedent('''
        def one():
            """The number one.

            ```python
            print(1)
            ```

            ```text title="Output"
            1
            ```
            """
        '''),
        "utf-8",
    )
    (program,), _, problems = read_all([module])
    assert not problems
    assert (program.block.line, program.block.code) == (5, "print(1)")
    assert program.output
    assert program.output.code == "1"


def test_reports_the_line_of_unformatted_code(
    page: Page, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = page('```python\nimport os\n\nx = "a"\n```\n\n```python\ny=1\n```\n')
    unused, unformatted = find_examples(path)
    set_style(eval_example, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:2:\d+: F401"):
        eval_example.lint(unused)
    with pytest.raises(pytest.fail.Exception, match=r"y = 1"):
        eval_example.lint(unformatted)


def test_a_wrong_fence_is_the_only_problem_of_its_page(check: Check) -> None:
    (problem,) = check(
        """
        ```bash
        echo one
        ```

        ```text title="Output"
        one
        ```
        """
    )
    assert "unsupported language `bash`" in problem.message


def test_a_traceback_shows_the_lines_of_the_page(
    page: Page, fork_server: Interpreter, env: dict[str, str]
) -> None:
    path = page("# One\n\n```python\ndef one():\n    return x\n\n\none()\n```\n")
    (program,), _, _ = read_all([path])
    for interpreter in (fork_server, FreshInterpreter(env)):
        (problem,) = check_run(program, run(program, interpreter, env))
        assert problem.line == 5
        assert f'File "{path}", line 8, in <module>' in problem.message
        assert "program.py" not in problem.message
        assert "Define or import `x` in this block" in problem.hint


def test_updating_writes_the_output_and_keeps_every_other_byte(
    page: Page, fork_server: Interpreter, env: dict[str, str]
) -> None:
    before = (
        "# Title  \r\n\n1. A list\n\n    ```python\n    print('a')\n    print()\n    print('b')\n"
        '    ```\n\n    ```text title="Output"\n    old\n    ```\n\n\ttab  \nno newline at the end'
    )
    path = page("")
    path.write_bytes(before.encode())
    (program,), _, problems = read_all([path])
    assert not problems
    changes, problems = needed_changes(program, run(program, fork_server, env))
    rewrite(path, changes)
    assert not problems
    assert path.read_bytes().decode() == before.replace("    old\n", "    a\n\n    b\n")


def test_updating_keeps_an_output_if_only_named_parts_differ(
    page: Page, fork_server: Interpreter, env: dict[str, str]
) -> None:
    text = """
        ```python
        print("took 1.5 s")
        ```

        <!-- varies: seconds="[0-9.]+(?= s)" -->
        ```text title="Output"
        took 9.9 s
        ```
        """
    (program,), _, _ = read_all([page(text)])
    assert needed_changes(program, run(program, fork_server, env)) == ([], [])


DIAGRAM = """
    ```python
    import apache_beam as beam

    with beam.Pipeline() as pipeline:
        words = pipeline | "words" >> beam.Create(["one", "two"])
        letters = words | "count" >> beam.combiners.Count.Globally()
        words | "print" >> beam.Map(print, beam.pvalue.AsSingleton(letters))
    ```

    ```text title="Output (any order)"
    one 2
    two 2
    ```

    <!-- draws: LR -->
    ```mermaid
    flowchart LR
        s0["words"]
        s1["count"]
        s2["print"]
        s0 --> s1
        s0 --> s2
        s1 -.-> s2
    ```
    """


def test_a_diagram_is_drawn_from_the_pipeline_that_ran(check: Check) -> None:
    assert not check(DIAGRAM)
    assert '+    s1["count"]' in as_text(check(DIAGRAM.replace('s1["count"]', 's1["sum"]')))
    assert "draws: TD" in as_text(check(DIAGRAM.replace("draws: LR", "draws: up")))


def test_programs_do_not_share_names(check: Check) -> None:
    assert "NameError" in as_text(
        check(
            """
            ```python
            x = 1
            ```

            ```python
            assert x
            ```
            """
        )
    )


def test_a_program_is_the_main_module_and_its_exit_code_counts(check: Check) -> None:
    text = """
        ```python
        import atexit
        import pickle
        import sys


        class Word(str):
            pass


        atexit.register(print, "last")
        assert __name__ == "__main__"
        assert pickle.loads(pickle.dumps(Word("ok"))) == "ok"
        print(sys.argv == [__file__.rsplit("/")[-1]], file=sys.stderr)
        sys.exit({})
        ```

        ```text title="Output"
        last
        ```
        """
    assert not check(text.format(0))
    assert "the program fails" in as_text(check(text.format(3)))


def test_an_output_can_show_the_name_of_a_varying_part(check: Check) -> None:
    text = """
        # One

        ```python
        import tempfile

        print("In", tempfile.mkdtemp() + "/one.txt")
        ```

        <!-- varies: folder="/\\S+(?=/one)" -->
        ```text title="Output"
        In <folder>/one.txt
        ```
    """
    assert not check(text)
    assert "two.txt" in as_text(check(text.replace("/one.txt", "/two.txt", 1)))
    assert "matches nothing" in as_text(check(text.replace("<folder>/", "<directory>/")))


def test_the_same_text_runs_once_wherever_it_appears(
    page: Page, tmp_path: Path, fork_server: Interpreter, env: dict[str, str]
) -> None:
    text = '# One\n\n```python\nimport time\n\nprint(time.time_ns())\n```\n\n```text title="Output"\n1\n```\n'
    cache = RunCache(tmp_path / "runs", "here")
    (program,), _, _ = read_all([page(text)])
    (moved,), _, _ = read_all([page(text.replace("# One", "# One\n\nMore."))])
    (edited,), _, _ = read_all([page(text.replace("print(", "print('', "))])
    first = cache.run(program, fork_server, env)
    assert cache.run(moved, fork_server, env) == first
    assert cache.run(edited, fork_server, env).stdout != first.stdout
    other = RunCache(tmp_path / "runs", "another library or other pins")
    assert other.run(program, fork_server, env).stdout != first.stdout
    cache.discard(program)
    assert cache.run(program, fork_server, env).stdout != first.stdout


def test_the_environment_key_changes_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment_key("forked")
    assert before != environment_key("fresh")
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "unbatch.py")
    )
    run_cache.digest_files.cache_clear()
    assert before != environment_key("forked")
    monkeypatch.undo()
    run_cache.digest_files.cache_clear()
    assert before == environment_key("forked")


def test_changed_pages_are_found_by_comparison_with_a_commit() -> None:
    assert all(page.startswith("docs/") for page in changed_pages("HEAD"))


TEMPLATES = re.findall(
    r"^ *````markdown\n(.*?)^ *````$",
    (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)


def test_the_page_templates_in_contributing_pass(check: Check) -> None:
    assert not check(TEMPLATES[0])
    assert not check(TEMPLATES[1])
