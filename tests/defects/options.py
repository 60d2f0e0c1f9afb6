"""Options that do nothing, or break."""

from __future__ import annotations

from typing import Any

from defects.packages import Package
from defects.row import Row
from defects.tools import Doubling, InTens, Run, count, notes, raised


def weight(package: Package) -> str:
    handler = package.handler(Doubling, max_batch_weight=10, element_size_fn=int, min_batch_size=9)
    return Run(package, [5, 5, 5, 5], handler).said(_batches)


def weight_over_bundles(package: Package) -> str:
    handler = package.handler(
        Doubling,
        max_batch_weight=10,
        element_size_fn=int,
        min_batch_size=9,
        max_batch_duration_secs=1,
    )
    return Run(package, [5, 5, 5, 5], handler).said(_batches)


def heavy(package: Package) -> str:
    handler = package.handler(Doubling, max_batch_size=10, min_batch_size=10, element_size_fn=int)
    return Run(package, [25, 4, 4], handler).said(_batches)


def heavy_over_bundles(package: Package) -> str:
    handler = package.handler(
        Doubling,
        max_batch_size=10,
        min_batch_size=10,
        element_size_fn=int,
        max_batch_duration_secs=1,
    )
    return Run(package, [4, 4, 4, 4], handler).said(_batches)


def lengths(package: Package) -> str:
    handler = package.handler(
        _Texts,
        batch_length_fn=len,
        batch_bucket_boundaries=[4],
        min_batch_size=4,
        max_batch_size=4,
    )
    return Run(package, ["a", "aaaaaaaa", "b", "bbbbbbbb"], handler).said(_batches)


def _upper(text: str) -> str:
    return text.upper()


class _Texts(Doubling):
    def load_model(self) -> Any:
        return _upper


def _batches(run: Run) -> str:
    return ", ".join(sorted(str(batch) for batch in run.batches))


def _per_key(package: Package, size: type = InTens) -> Any:
    mappings = [
        package.base.KeyModelMapping(["a"], package.handler(size)),
        package.base.KeyModelMapping(["b"], package.handler(size)),
    ]
    return package.base.KeyedModelHandler(mappings)


def _same(value: Any) -> Any:
    return value


def per_key_preprocess(package: Package) -> str:
    return _results_per_key(package, _per_key(package).with_preprocess_fn(_same))


def per_key_postprocess(package: Package) -> str:
    return _results_per_key(package, _per_key(package).with_postprocess_fn(_same))


def per_key_no_batching(package: Package) -> str:
    return _results_per_key(package, _per_key(package).with_no_batching(), batched=True)


def _results_per_key(package: Package, handler: Any, batched: bool = False) -> str:
    elements = [("a", 1), ("b", 2)]
    run = Run(package, [elements] if batched else elements, handler)
    return run.said(lambda run: ", ".join(map(str, sorted(_flat(run.good)))))


def _flat(results: list[Any]) -> list[Any]:
    return [r for result in results for r in (result if isinstance(result, list) else [result])]


def keyed_no_batching(package: Package) -> str:
    handler = package.base.KeyedModelHandler(package.handler(InTens).with_no_batching())
    run = Run(package, [[("a", 1), ("b", 2)]], handler)
    return run.said(lambda run: ", ".join(map(str, sorted(_flat(run.good)))))


def misspelt(package: Package) -> str:
    return raised(lambda: package.handler(_Plain, max_batchsize=8))


class _Plain(Doubling):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


def misspelt_step(package: Package) -> str:
    return raised(lambda: package.base.RunInference(package.handler(Doubling), model_id="m"))


class _Table(Doubling):
    def load_model(self) -> Any:
        return {1: 2}

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model.get(number) for number in batch]


def unshareable(package: Package) -> str:
    run = Run(package, [1], package.handler(_Table))
    return run.said(lambda run: count(len(run.good), "result"))


def two_steps(package: Package) -> str:
    import apache_beam as beam

    from common import RUNNER

    notes("loads")
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create([1, 2], reshuffle=False)
        for name in ("first", "second"):
            step = package.base.RunInference(package.handler(Doubling), model_identifier="doubler")
            numbers |= name >> step
    notes("batches")
    return count(len(notes("loads")), "load")


ROWS = (
    Row(
        "`max_batch_weight=10`, for elements that weigh 5 each.",
        weight,
        "`TypeError`",
        "[5, 5], [5, 5]",
    ),
    Row(
        "The same with `max_batch_duration_secs=1`.",
        weight_over_bundles,
        "`TypeError`",
        "[5, 5], [5, 5]",
    ),
    Row(
        "`element_size_fn` with `max_batch_size=10`, for elements of size 25, 4 and 4.",
        heavy,
        "[25], [4, 4], []",
        "[25], [4, 4]",
    ),
    Row(
        "The same with `max_batch_duration_secs=1`, for four elements of size 4.",
        heavy_over_bundles,
        "[4, 4, 4, 4]",
        "[4, 4], [4, 4]",
    ),
    Row(
        "`batch_length_fn=len` and `batch_bucket_boundaries=[4]`, for texts of 1 and 8 letters.",
        lengths,
        "['a', 'aaaaaaaa', 'b', 'bbbbbbbb']",
        "['a', 'b'], ['aaaaaaaa', 'bbbbbbbb']",
    ),
    Row(
        "A model per key, and `with_preprocess_fn`.",
        per_key_preprocess,
        "`KeyError`",
        "('a', 2), ('b', 4)",
    ),
    Row(
        "A model per key, and `with_postprocess_fn`.",
        per_key_postprocess,
        "`KeyError`",
        "('a', 2), ('b', 4)",
    ),
    Row(
        "A model per key, and `with_no_batching`.",
        per_key_no_batching,
        "`KeyError`",
        "('a', 2), ('b', 4)",
    ),
    Row(
        "`KeyedModelHandler(handler.with_no_batching())`, for one batch of two elements.",
        keyed_no_batching,
        "(('a', 1), ('b', 2, 'b', 2))",
        "('a', 2), ('b', 4)",
    ),
    Row(
        "`max_batchsize=8`, misspelt, to a handler of your own.",
        misspelt,
        "accepted",
        "`UnknownOptionError`: Did you mean 'max_batch_size'?",
    ),
    Row(
        "`RunInference(handler, model_id='m')`, which it does not know.",
        misspelt_step,
        "accepted",
        "`UnknownOptionError`: Did you mean 'model_identifier'?",
    ),
    Row(
        "A model that is a dictionary.",
        unshareable,
        "`TypeError`",
        "1 result",
    ),
    Row(
        "Two steps with one `model_identifier`, in one process.",
        two_steps,
        "2 loads",
        "1 load",
    ),
)
