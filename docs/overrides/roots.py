"""Adds pages to the site whose source is in the root of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Any, config: Any) -> Any:
    root = Path(config.config_file_path).parent
    for page, source in PAGES.items():
        if (root / source).exists():
            files.append(File.generated(config, page, abs_src_path=str(root / source)))
    return files
