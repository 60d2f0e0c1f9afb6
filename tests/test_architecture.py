"""Imports between packages point downwards, and no framework is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from architecture import (
    MODULES,
    PAGE,
    SOURCES,
    imports,
    internal_imports,
    layer,
    package,
    update_diagram,
)

#: Packages that import neither Beam nor a framework.
PURE = {"batching", "caching", "collate"}
FRAMEWORKS = {
    "sklearn",
    "joblib",
    "skops",
    "pandas",
    "torch",
    "torchvision",
    "transformers",
    "tensorflow",
    "xgboost",
    "lightgbm",
    "mlflow",
    "onnxruntime",
    "httpx",
}


def test_imports_between_packages_point_downwards():
    offending = [
        f"{module} imports {other}"
        for module in MODULES
        for other in sorted(internal_imports(module))
        if package(module) != package(other) and layer(module) >= layer(other)
    ]
    assert not offending, "\n".join(offending)


def test_no_modules_import_each_other():
    graph = {module: internal_imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_the_top_level_contains_only_public_modules():
    top_level = sorted(path.stem for path in SOURCES.glob("*.py"))
    assert len(top_level) <= 22
    allowed = {
        "__init__",
        "base",
        "utils",
        "errors",
        "checks",
        "results",
        "extras",
        "download",
        "model_file",
    }
    allowed |= {"ml_transform", "yaml"}
    assert [name for name in top_level if not name.endswith("_inference")] == sorted(allowed)


@pytest.mark.parametrize("module", [m for m in MODULES if package(m) in PURE])
def test_batching_caching_and_collate_import_neither_beam_nor_a_framework(module):
    roots = {name.partition(".")[0] for name in imports(module)}
    # Frames are built by pandas, which is imported when there is one.
    assert not roots & (FRAMEWORKS - {"pandas"} | {"apache_beam"})


def test_no_module_imports_beams_own_inference():
    for module in MODULES:
        # MLTransform takes only subclasses of its own class.
        allowed = (
            {"apache_beam.ml.transforms.base"} if module == "runinference.ml_transform" else ()
        )
        found = imports(module).difference(allowed)
        assert not any(name.startswith("apache_beam.ml") for name in found), module


def test_importing_the_package_imports_no_framework():
    program = "import sys, runinference; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before = subprocess.run(
        [sys.executable, "-c", program.replace("runinference", "apache_beam")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (set(loaded.stdout.split()) - set(before.stdout.split())) & FRAMEWORKS


def test_the_diagram_on_the_architecture_page_is_up_to_date():
    page = PAGE.read_text()
    assert update_diagram(page) == page, "To update the diagram, run: make docs-update"


def test_the_architecture_page_names_every_module():
    page = PAGE.read_text()
    for module in MODULES:
        if package(module) not in ("facade", "public handlers") and module.count(".") > 1:
            name = module.rpartition(".")[2]
            assert f"`{name}.py`" in page or SOURCES.joinpath(*module.split(".")[1:]).is_dir(), (
                module
            )
