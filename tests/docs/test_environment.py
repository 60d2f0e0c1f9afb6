"""The make targets set up an environment, and report what is missing on the machine."""

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


def test_an_old_python_is_reported_with_a_hint(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode
    assert (
        "Python 3.10 or later is required. To use another interpreter, run make PYTHON="
        in done.stdout
    )


def test_a_missing_python_is_reported_with_a_hint(tmp_path: Path) -> None:
    done = make("demo", "PYTHON=", f"VENV={tmp_path / 'venv'}")
    assert done.returncode
    assert "apt-get install python3" in done.stdout


def test_the_demo_environment_is_part_of_the_full_environment() -> None:
    """Check that `make demo` after `make test` neither installs nor removes packages."""

    def versions(which: str) -> set[str]:
        return {line.split(" ;")[0] for line in pins(which)}

    assert versions("demo") <= versions("full")


def test_pins_contain_only_names_and_versions() -> None:
    for line in pins("demo") | pins("full") | pins("uv"):
        assert re.match(r"^[\w.-]+==[\w.+!]+( ; .+)?$", line), line


def test_the_settings_of_pip_are_passed_to_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec
    assert spec.loader
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    for name in install.UV_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    settings = "global.index-url='https://one.example'\n:env:.index-url='https://two.example'\n"
    assert install.uv_environment(settings) == {"UV_DEFAULT_INDEX": "https://two.example"}
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://three.example")
    assert install.uv_environment(settings) == {}


def test_ci_runs_only_make() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    commands = [line for line in lines[1:] if not line.startswith(("#", "cd ", "set "))]
    assert commands[0] == "make test"
    assert all(line.startswith("make ") for line in commands)


def test_the_home_page_lists_every_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^([\w-]+) = \[", text.split("\n[")[0], re.MULTILINE))
    page = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == extras - {"docs", "test"}
