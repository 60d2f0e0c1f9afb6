"""MkDocs hooks that adjust each page: test comments, search ranking, and error blocks."""

from __future__ import annotations

import re
from typing import Any

_DIRECTIVE = re.compile(
    r"^[ \t]*<!--\s*(?:raises|varies|draws|skip)\s*:.*?-->[ \t]*\n", re.MULTILINE
)
_ERROR = re.compile(r'(<div class="language-text highlight)("><span class="filename">Error</span>)')
_NAME = re.compile(r'(<h1 id="runinference\.[^>]*>(?:(?!</h1>).)*?runinference\.)(?=\w)', re.DOTALL)
_PRIVATE_PATH = re.compile(
    r' title="(?:([\w.]+) \(runinference\.[^)"]*\)'
    r'|runinference\.(?:batching|caching|collate|frameworks|handlers|remote|serving|transforms)\.[^"]*)"'
)
_BOOST = {
    "reference/": 0.3,
    "how-the-documentation-is-tested.md": 0.3,
    "architecture.md": 0.6,
    "examples/": 0.5,
    "changelog.md": 0.3,
    "contributing.md": 0.3,
}
"""Search ranking of pages, 1 by default. Guides rank above the reference."""

_KEYWORDS = {
    "batching.md": ["batch size", "max_batch_size", "padding"],
    "beam-yaml-and-other-sdks.md": ["YAML", "Java", "cross-language", "expansion service"],
    "coming-from-apache-beam.md": ["migrate"],
    "dataflow.md": ["container", "Dockerfile", "Google Cloud"],
    "error-handling-and-dead-letter-queues.md": ["DLQ", "with_exception_handling", "timeout"],
    "flink-on-kubernetes.md": ["operator", "worker pool"],
    "gpus.md": ["CUDA", "out of memory"],
    "hugging-face.md": ["embeddings"],
    "keyed-model-handlers.md": ["KeyedModelHandler"],
    "llm-endpoints.md": ["OpenAI", "rate limit"],
    "memory-and-model-sharing.md": ["large_model", "memory"],
    "model-refresh.md": ["WatchFilePattern", "refresh the model"],
    "multi-model-pipelines.md": ["A/B test", "cascade", "ensemble", "multi-model", "voting"],
    "per-key-models.md": ["model per key"],
    "pre-trained-models.md": ["saved model", "state_dict"],
    "prediction-results.md": ["PredictionResult"],
    "quickstart.md": ["install"],
    "remote-models.md": ["rate limit", "retry", "timeout"],
    "size-a-cluster.md": ["autoscaling", "cost", "number of workers"],
    "tabular-data.md": ["BigQuery", "CSV", "DataFrame", "NamedTuple", "Parquet", "ReadFromCsv"],
    "tensorflow-and-keras.md": ["SavedModel", "tf.Example"],
    "troubleshooting.md": ["out of memory"],
}
"""Words that users search for, in addition to those in headings. The search counts them like a heading."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Set the search ranking, and remove the comments that are meant for the documentation tests."""
    for place, boost in _BOOST.items():
        if page.file.src_uri.startswith(place):
            page.meta.setdefault("search", {"boost": boost})
    if page.file.src_uri in _KEYWORDS:
        page.meta.setdefault("tags", _KEYWORDS[page.file.src_uri])
    if page.file.src_uri == "contributing.md":  # it documents the comments
        return markdown
    return _DIRECTIVE.sub("", markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Show the public paths of objects in the tooltips of the API reference, and no private ones."""
    return _PRIVATE_PATH.sub(lambda path: f' title="{path[1]}"' if path[1] else "", output)


def on_page_content(html: str, **_: Any) -> str:
    """Mark error blocks and signatures, and allow a line break in module names.

    Error messages wrap like prose, so that the hint is visible. Signatures have no copy button.
    """
    html = _NAME.sub(r"\1<wbr>", html, count=1)
    html = _ERROR.sub(r"\1 error\2", _DIRECTIVE.sub("", html))
    return html.replace("doc-signature highlight", "doc-signature highlight no-copy")
