"""The tests of the pages catch what they promise to catch, and say where it is and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from docs import site_reader, store
from docs.agree import disagreements, read_all
from docs.blocks import ROOT, Fault
from docs.chosen import changed
from docs.compare import faults_of
from docs.ledger import checked, skipped
from docs.lint import lint
from docs.run import Fresh, Interpreter, run
from docs.store import Store, surroundings
from docs.update import rewrite, wanted

Page = Callable[[str], Path]
Check = Callable[[str], list[Fault]]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(dedent(text), "utf-8")
        return path

    return write


@pytest.fixture
def check(page: Page, forked: Interpreter, env: dict[str, str]) -> Check:
    """All that is wrong with a page, as the doc tests find it."""

    def faults(text: str) -> list[Fault]:
        programs, _, found = read_all([page(text)])
        for program in programs:
            found += faults_of(program, run(program, forked, env))
        return found

    return faults


def told(faults: list[Fault]) -> str:
    return "\n".join(map(str, faults))


GOOD = """
    # A page

    ```python
    print("one")
    print("two")
    ```

    Prose may stand here.

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
    assert not check(GOOD)


@pytest.mark.parametrize("text", ["GOOD", "PICTURE"])
def test_a_good_page_passes_in_fresh_interpreters_too(
    text: str, page: Page, env: dict[str, str]
) -> None:
    programs, _, faults = read_all([page(globals()[text])])
    for program in programs:
        faults += faults_of(program, run(program, Fresh(env), env))
    assert not faults


def test_output_may_come_in_any_order_if_the_title_says_so(check: Check) -> None:
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
    assert "the output is not this" in told(check(text.format("Output")))


def test_a_named_part_may_vary_and_nothing_else(check: Check) -> None:
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
    assert "-10 images in <seconds> s" in told(check(text.format(11)))


FAULTY = {
    "a program that fails": (
        """
        ```python
        print(undefined)
        ```
        """,
        2,
        "NameError: name 'undefined' is not defined",
    ),
    "an output of yesterday": (
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
    "an output that is not shown": (
        """
        ```python
        print(2)
        ```
        """,
        2,
        "prints what the page does not show",
    ),
    "an output of nothing": (
        """
        ```text title="Output"
        1
        ```
        """,
        2,
        "follows no program",
    ),
    "no error where one is promised": (
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
    "another error than promised": (
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
    "another message than shown": (
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
    "an error that nobody announced": (
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
    "an error that is not shown": (
        """
        <!-- raises: ValueError -->
        ```python
        int("one")
        ```
        """,
        3,
        "does not show the message",
    ),
    "an option that nobody knows": (
        """
        ```python titel="x"
        x = 1
        ```
        """,
        2,
        "Did you mean `title`?",
    ),
    "a directive that nobody knows": (
        """
        <!-- raise: ValueError -->
        ```python
        x = 1
        ```
        """,
        2,
        "Did you mean `raises`?",
    ),
    "a title that is nearly right": (
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
    "a language that nobody knows": (
        """
        ```bash
        ls
        ```
        """,
        2,
        "Write ```shell.",
    ),
    "a fence of tildes": (
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
    "a pattern that is none": (
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
    "an excerpt of lines that are not there": (
        """
        <!-- shows: 1-3 -->
        ```python
        x = 1
        ```
        """,
        3,
        "Name lines of the block, from 1 to 1",
    ),
    "an excerpt that cannot be read": (
        """
        <!-- shows: the end -->
        ```python
        x = 1
        ```
        """,
        3,
        "cannot read `shows: the end`",
    ),
    "a skipped program": (
        """
        <!-- skip: it is Sunday -->
        ```python
        x = 1
        ```
        """,
        3,
        "cannot be skipped",
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


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_page_is_told_where_and_how_to_mend_it(check: Check, fault: str) -> None:
    text, line, words = FAULTY[fault]
    found = check(text)
    assert words in told(found)
    assert line in {each.line for each in found}, told(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("~~~python\nx = 1\n~~~\n", "pytest-examples does not find it"),
        ("<!--\n```python\nx = 1\n```\n-->\n", "the site does not show it"),
        ("Words.\n\n    ```python\n    x = 1\n    ```\n", "the site does not show it"),
    ],
)
def test_the_two_readers_must_agree(page: Page, text: str, words: str) -> None:
    path = page(text)
    blocks, _ = site_reader.read(path)
    assert words in told(disagreements(path, blocks))


def test_shell_blocks_run_and_stand_ins_are_on_the_ledger(check: Check, page: Page) -> None:
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
    _, blocks, faults = read_all([page(text)])
    assert not faults
    assert [entry.what for entry in checked(blocks)] == [
        'pip install "runinference[sklearn]"',
        "make test",
    ]
    assert [entry.reason for entry in skipped(blocks)] == ["needs a cluster"]
    first = text.split("<!-- skip")[0]
    assert not check(first)


def test_blocks_in_docstrings_are_read_where_they_stand(tmp_path: Path) -> None:
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
    (program,), _, faults = read_all([module])
    assert not faults
    assert (program.block.line, program.block.code) == (5, "print(1)")
    assert program.output
    assert program.output.code == "1"


def test_code_that_is_not_formatted_is_told_at_its_line(page: Page) -> None:
    _, blocks, _ = read_all([page('```python\nimport os\n\nx = "a"\n```\n\n```python\ny=1\n```\n')])
    faults = lint(blocks)
    assert [(fault.line, fault.what.split(":")[0]) for fault in faults] == [
        (2, "F401"),
        (7, "the code is not formatted"),
    ]


def test_updating_writes_what_was_printed_and_keeps_every_other_byte(
    page: Page, forked: Interpreter, env: dict[str, str]
) -> None:
    before = (
        "# Title  \r\n\n1. A list\n\n    ```python\n    print('a')\n    print()\n    print('b')\n"
        '    ```\n\n    ```text title="Output"\n    old\n    ```\n\n\ttab  \nno newline at the end'
    )
    path = page("")
    path.write_bytes(before.encode())
    (program,), _, faults = read_all([path])
    assert not faults
    changes, faults = wanted(program, run(program, forked, env))
    rewrite(path, changes)
    assert not faults
    assert path.read_bytes().decode() == before.replace("    old\n", "    a\n\n    b\n")


def test_updating_leaves_an_output_that_only_varies(
    page: Page, forked: Interpreter, env: dict[str, str]
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
    assert wanted(program, run(program, forked, env)) == ([], [])


PICTURE = """
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


def test_a_picture_is_drawn_from_the_pipeline_that_ran(check: Check) -> None:
    assert not check(PICTURE)
    assert '+    s1["count"]' in told(check(PICTURE.replace('s1["count"]', 's1["sum"]')))
    assert "draws: TD" in told(check(PICTURE.replace("draws: LR", "draws: up")))


def test_no_program_sees_the_one_before_it(check: Check) -> None:
    assert "NameError" in told(
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


def test_a_program_is_its_main_module_and_ends_with_its_exit_code(check: Check) -> None:
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
    assert "the program fails" in told(check(text.format(3)))


def test_the_name_of_what_varies_may_stand_in_its_place(check: Check) -> None:
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
    assert "two.txt" in told(check(text.replace("/one.txt", "/two.txt", 1)))
    assert "matches nothing" in told(check(text.replace("<folder>/", "<directory>/")))


def test_one_run_proves_the_same_text_wherever_it_stands(
    page: Page, tmp_path: Path, forked: Interpreter, env: dict[str, str]
) -> None:
    text = '# One\n\n```python\nimport time\n\nprint(time.time_ns())\n```\n\n```text title="Output"\n1\n```\n'
    runs = Store(tmp_path / "runs", "here")
    (program,), _, _ = read_all([page(text)])
    (moved,), _, _ = read_all([page(text.replace("# One", "# One\n\nMore."))])
    (edited,), _, _ = read_all([page(text.replace("print(", "print('', "))])
    first = runs.run(program, forked, env)
    assert runs.run(moved, forked, env) == first
    assert runs.run(edited, forked, env).stdout != first.stdout
    elsewhere = Store(tmp_path / "runs", "another library, or other pins")
    assert elsewhere.run(program, forked, env).stdout != first.stdout
    runs.forget(program)
    assert runs.run(program, forked, env).stdout != first.stdout


def test_the_surroundings_change_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = surroundings("forked")
    assert before != surroundings("fresh")
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "splitting.py")
    )
    store._digest_of.cache_clear()
    assert before != surroundings("forked")
    monkeypatch.undo()
    store._digest_of.cache_clear()
    assert before == surroundings("forked")


def test_pages_are_chosen_by_what_differs_from_a_commit() -> None:
    assert all(page.startswith("docs/") for page in changed("HEAD"))


TEMPLATES = re.findall(
    r"^ *````markdown\n(.*?)^ *````$",
    (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)


def test_the_template_for_a_page_passes(check: Check) -> None:
    assert not check(TEMPLATES[0])
    assert not check(TEMPLATES[1])
