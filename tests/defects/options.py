"""Cases about options that have no effect or raise an error in Beam."""

from __future__ import annotations

from typing import Any

from defects.packages import Package
from defects.row import Row
from defects.tools import BatchesOfTen, Doubling, Run, count, describe_call, take_events


def weight(package: Package) -> str:
    handler = package.handler(Doubling, max_batch_weight=10, element_size_fn=int, min_batch_size=9)
    return Run(package, [5, 5, 5, 5], handler).describe(_batches)


def weight_across_bundles(package: Package) -> str:
    handler = package.handler(
        Doubling,
        max_batch_weight=10,
        element_size_fn=int,
        min_batch_size=9,
        max_batch_duration_secs=1,
    )
    return Run(package, [5, 5, 5, 5], handler).describe(_batches)


def element_size(package: Package) -> str:
    handler = package.handler(Doubling, max_batch_size=10, min_batch_size=10, element_size_fn=int)
    return Run(package, [25, 4, 4], handler).describe(_batches)


def element_size_across_bundles(package: Package) -> str:
    handler = package.handler(
        Doubling,
        max_batch_size=10,
        min_batch_size=10,
        element_size_fn=int,
        max_batch_duration_secs=1,
    )
    return Run(package, [4, 4, 4, 4], handler).describe(_batches)


def lengths(package: Package) -> str:
    handler = package.handler(
        _Texts,
        batch_length_fn=len,
        batch_bucket_boundaries=[4],
        min_batch_size=4,
        max_batch_size=4,
    )
    return Run(package, ["a", "aaaaaaaa", "b", "bbbbbbbb"], handler).describe(_batches)


def _upper(text: str) -> str:
    return text.upper()


class _Texts(Doubling):
    def load_model(self) -> Any:
        return _upper


def _batches(run: Run) -> str:
    return ", ".join(sorted(str(batch) for batch in run.batches))


def _per_key(package: Package, size: type = BatchesOfTen) -> Any:
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
    return run.describe(lambda run: ", ".join(map(str, sorted(_flat(run.good)))))


def _flat(results: list[Any]) -> list[Any]:
    return [r for result in results for r in (result if isinstance(result, list) else [result])]


def keyed_no_batching(package: Package) -> str:
    handler = package.base.KeyedModelHandler(package.handler(BatchesOfTen).with_no_batching())
    run = Run(package, [[("a", 1), ("b", 2)]], handler)
    return run.describe(lambda run: ", ".join(map(str, sorted(_flat(run.good)))))


def misspelled(package: Package) -> str:
    return describe_call(lambda: package.handler(_Plain, max_batchsize=8))


class _Plain(Doubling):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


def misspelled_transform_option(package: Package) -> str:
    return describe_call(lambda: package.base.RunInference(package.handler(Doubling), model_id="m"))


class _Table(Doubling):
    def load_model(self) -> Any:
        return {1: 2}

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model.get(number) for number in batch]


def model_without_weakref(package: Package) -> str:
    run = Run(package, [1], package.handler(_Table))
    return run.describe(lambda run: count(len(run.good), "result"))


def shared_model_identifier(package: Package) -> str:
    import apache_beam as beam

    from common import RUNNER

    take_events("loads")
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create([1, 2], reshuffle=False)
        for name in ("first", "second"):
            transform = package.base.RunInference(
                package.handler(Doubling), model_identifier="doubler"
            )
            numbers |= name >> transform
    take_events("batches")
    return count(len(take_events("loads")), "load")


ROWS = (
    Row(
        "`max_batch_weight=10`, for elements of weight 5.",
        weight,
        "`TypeError`",
        "[5, 5], [5, 5]",
    ),
    Row(
        "The same with `max_batch_duration_secs=1`.",
        weight_across_bundles,
        "`TypeError`",
        "[5, 5], [5, 5]",
    ),
    Row(
        "`element_size_fn` with `max_batch_size=10`, for elements of size 25, 4 and 4.",
        element_size,
        "[25], [4, 4], []",
        "[25], [4, 4]",
    ),
    Row(
        "The same with `max_batch_duration_secs=1`, for four elements of size 4.",
        element_size_across_bundles,
        "[4, 4, 4, 4]",
        "[4, 4], [4, 4]",
    ),
    Row(
        "`batch_length_fn=len` and `batch_bucket_boundaries=[4]`, for strings of length 1 and 8.",
        lengths,
        "['a', 'aaaaaaaa', 'b', 'bbbbbbbb']",
        "['a', 'b'], ['aaaaaaaa', 'bbbbbbbb']",
    ),
    Row(
        "Per-key models with `with_preprocess_fn`.",
        per_key_preprocess,
        "`KeyError`",
        "('a', 2), ('b', 4)",
    ),
    Row(
        "Per-key models with `with_postprocess_fn`.",
        per_key_postprocess,
        "`KeyError`",
        "('a', 2), ('b', 4)",
    ),
    Row(
        "Per-key models with `with_no_batching`.",
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
        "Misspelled option `max_batchsize=8` of a custom handler.",
        misspelled,
        "accepted",
        "`UnknownOptionError`: Did you mean 'max_batch_size'?",
    ),
    Row(
        "Unknown option `RunInference(handler, model_id='m')`.",
        misspelled_transform_option,
        "accepted",
        "`UnknownOptionError`: Did you mean 'model_identifier'?",
    ),
    Row(
        "The model is a dictionary.",
        model_without_weakref,
        "`TypeError`",
        "1 result",
    ),
    Row(
        "Model loads for two transforms with one `model_identifier` in one process.",
        shared_model_identifier,
        "2 loads",
        "1 load",
    ),
)
