"""Each module imports only what stands below it, and no framework is imported before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import runinference

SOURCES = Path(runinference.__file__).parent

# From the ground up: a module may import modules of its own floor that stand before it, and of lower floors.
FLOORS = {
    "words": [
        "errors",
        "extras",
        "results",
        "options",
        "batching",
        "sizing",
        "gathering",
        "rows",
        "splitting",
        "stacking",
        "fitting",
        "json_tensors",
        "protocols",
        "openai_protocol",
        "tables",
        "structure",
        "failing",
        "whole",
        "running",
        "padding",
        "trying",
        "handler",
        "updates",
        "shelf",
        "joining",
        "retrying",
    ],
    "files": [
        "model_file",
        "sample_files",
        "sample_texts",
        "samples",
        "local_server",
        "sample_servers",
    ],
    "handlers": [
        "mapped",
        "keyed",
        "sending",
        "remote",
        "posting",
        "endpoint",
        "openai_inference",
        "http_inference",
        "sklearn_inference",
        "torch_devices",
        "torch_loading",
        "torch_exported",
        "torch_compiling",
        "torch_calling",
        "pytorch_inference",
        "huggingface_loading",
        "huggingface_inputs",
        "huggingface_tokens",
        "huggingface_text",
        "huggingface_embedding",
        "huggingface_tasks",
        "huggingface_pipeline",
        "huggingface_inference",
        "onnx_loading",
        "onnx_inference",
        "xgboost_inference",
        "lightgbm_file",
        "lightgbm_inference",
        "tensorflow_loading",
        "tensorflow_calling",
        "tensorflow_inference",
    ],
    "engine": [
        "metrics",
        "coding",
        "arguments",
        "routing",
        "watching",
        "crossing",
        "sharing",
        "child",
        "step",
        "leasing",
        "infer",
        "prebatched",
        "waiting",
        "managing",
        "refresh",
    ],
    "transform": ["dead_letters", "transform"],
    "façade": ["base", "utils", "comparing", "checks", "testing", "__init__"],
}
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
    "onnxruntime",
    "httpx",
}


def imports(module: str) -> set[str]:
    tree = ast.parse((SOURCES / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "runinference":
                found |= {f"runinference.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_every_module_has_its_floor():
    modules = {path.stem for path in SOURCES.glob("*.py")}
    assert modules == {module for floor in FLOORS.values() for module in floor}


def test_modules_import_only_what_stands_below_them():
    below: list[str] = []
    for floor, modules in FLOORS.items():
        for module in modules:
            own = {
                name.partition(".")[2]
                for name in imports(module)
                if name.startswith("runinference.")
            }
            if floor == "engine":  # the engine knows handlers by their methods alone
                assert not own & set(FLOORS["handlers"]), f"{module} imports a handler"
            assert own <= {*below}, f"{module} imports what stands above it: {own - {*below}}"
            below.append(module)


def test_words_know_neither_beam_nor_a_framework():
    for module in FLOORS["words"]:
        roots = {name.partition(".")[0] for name in imports(module)}
        assert not roots & (FRAMEWORKS | {"apache_beam"}), module


def test_nothing_imports_beams_own_inference():
    for path in SOURCES.glob("*.py"):
        assert not any(name.startswith("apache_beam.ml") for name in imports(path.stem)), path.name


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


def test_the_page_for_contributors_names_every_module():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    frameworks = {module for module in FLOORS["handlers"] if module.endswith("_inference")}
    for modules in FLOORS.values():
        for module in set(modules) - frameworks:
            assert f"`{module}`" in page, f"docs/architecture.md does not name {module}"
