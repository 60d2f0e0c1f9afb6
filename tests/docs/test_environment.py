"""The commands make an environment from what the machine has, and say what is missing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from docs.blocks import ROOT


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pins(which: str) -> set[str]:
    return set((ROOT / "requirements" / f"{which}.txt").read_text("utf-8").splitlines())


def test_an_old_python_is_told_with_the_cure(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    said = make("demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert said.returncode
    assert "Python 3.10 or later is needed. Name another one: make PYTHON=" in said.stdout


def test_no_python_at_all_is_told_with_the_cure(tmp_path: Path) -> None:
    said = make("demo", "PYTHON=", f"VENV={tmp_path / 'venv'}")
    assert said.returncode
    assert "apt-get install python3" in said.stdout


def test_the_demo_needs_nothing_that_the_full_environment_has_otherwise() -> None:
    """So `make demo` after `make test` installs nothing, and takes nothing away."""

    def versions(which: str) -> set[str]:
        return {line.split(" ;")[0] for line in pins(which)}

    assert versions("demo") <= versions("full")


def test_pins_are_names_and_versions_only() -> None:
    for line in pins("demo") | pins("full") | pins("uv"):
        assert re.match(r"^[\w.-]+==[\w.+!]+( ; .+)?$", line), line


def test_what_pip_was_told_is_passed_on_to_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec
    assert spec.loader
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    for name in install.MEANS_THE_SAME.values():
        monkeypatch.delenv(name, raising=False)
    settings = "global.index-url='https://one.example'\n:env:.index-url='https://two.example'\n"
    assert install.uv_environment(settings) == {"UV_DEFAULT_INDEX": "https://two.example"}
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://three.example")
    assert install.uv_environment(settings) == {}


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert [line for line in lines[1:] if not line.startswith(("cd ", "set "))] == ["make test"]


def test_the_first_page_names_every_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^([\w-]+) = \[", text.split("\n[")[0], re.MULTILINE))
    page = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == extras - {"docs", "test"}
