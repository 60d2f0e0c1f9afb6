"""Batch the inputs of a Transformers pipeline without changing its results."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any

from runinference.errors import ElementError, is_out_of_memory
from runinference.extras import need
from runinference.frameworks.huggingface.batch_mode import (
    BatchMode,
    accepts_mask,
    depends_on_padded_prompt,
    find_batch_mode,
    make_probe,
)
from runinference.frameworks.huggingface.positions import find_max_tokens
from runinference.frameworks.huggingface.tokenizer import BatchTokenizer, get_lock

torch = need("torch", extra="transformers")
transformers = need("transformers", extra="transformers")

#: The pipelines whose inputs can share a call of the model. Texts are padded if the model ignores padding.
_TEXT_PIPELINES = (
    "TextClassificationPipeline",
    "TokenClassificationPipeline",
    "FeatureExtractionPipeline",
    "FillMaskPipeline",
    "ZeroShotClassificationPipeline",
    "QuestionAnsweringPipeline",
)
_GENERATION_PIPELINES = ("TextGenerationPipeline", "Text2TextGenerationPipeline")
#: The inputs of these pipelines share a call if they have the same shape.
_MEDIA_PIPELINES = (
    "AudioClassificationPipeline",
    "AutomaticSpeechRecognitionPipeline",
    "DepthEstimationPipeline",
    "ImageClassificationPipeline",
    "ImageFeatureExtractionPipeline",
    "ImageSegmentationPipeline",
    "ObjectDetectionPipeline",
    "VideoClassificationPipeline",
    "ZeroShotImageClassificationPipeline",
    "ZeroShotObjectDetectionPipeline",
)


#: The call argument that truncates texts, if it isn't ``truncation``.
_TRUNCATION = {"FillMaskPipeline": "{'tokenizer_kwargs': {'truncation': True}}"}


def prepare_batches(pipeline: Any, load_pipeline_args: Mapping[str, Any]) -> None:
    """Make a pipeline call its model only on inputs that don't change each other's results."""
    with _PREPARE_LOCK:
        if is_prepared(pipeline):
            return
        tokenizer, max_tokens = pipeline.tokenizer, find_max_tokens(pipeline.model)
        if tokenizer is not None and max_tokens is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens)
        mode = _find_mode(pipeline)
        if tokenizer is not None:
            hint = next((_TRUNCATION[x] for x in _TRUNCATION if _has_class(pipeline, [x])), None)
            check = functools.partial(_check_tokens, max_tokens, hint or "{'truncation': True}")
            pipeline.model.register_forward_pre_hook(check, with_kwargs=True)
        pipeline.load_pipeline_args = dict(load_pipeline_args)
        base: Any = type(pipeline)
        pipeline.__class__ = _define_class(base)
        pipeline.batch_mode = mode


_PREPARE_LOCK = threading.Lock()


def is_prepared(pipeline: Any) -> bool:
    return isinstance(getattr(pipeline, "batch_mode", None), BatchMode)


def _has_class(pipeline: Any, names: Collection[str]) -> bool:
    return not {kind.__name__ for kind in type(pipeline).__mro__}.isdisjoint(names)


def _find_mode(pipeline: Any) -> BatchMode:
    if _has_class(pipeline, _MEDIA_PIPELINES):
        return BatchMode.SAME_LENGTH
    generates = _has_class(pipeline, _GENERATION_PIPELINES)
    if pipeline.tokenizer is None or not (generates or _has_class(pipeline, _TEXT_PIPELINES)):
        return BatchMode.SINGLE
    model, tokenizer = pipeline.model, BatchTokenizer(pipeline.tokenizer, {})
    side = pipeline.tokenizer.padding_side
    padding = tokenizer.padding(side, unpad=not generates, mask=accepts_mask(model))
    call = make_probe(model, "generate" if generates else None, padding, pipeline.device)
    return find_batch_mode(model, tokenizer, call)


def _check_tokens(
    limit: int | None, hint: str, model: Any, args: Any, kwargs: Mapping[str, Any]
) -> None:
    """Raise `ElementError` for a text that the model would fail for, on a GPU for all later calls, too."""
    ids = kwargs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        return
    if ids.shape[1] == 0:
        raise ElementError("A text has no tokens. To fix this, filter out empty texts.")
    past = getattr(kwargs.get("past_key_values"), "get_seq_length", int)()
    if limit is not None and past and past + ids.shape[1] > limit:
        raise ElementError(
            f"A text and the tokens that continue it have more than {limit} tokens, which is the most that the "
            "model accepts. To fix this, lower max_new_tokens in inference_args, or shorten the text."
        )
    if limit is not None and ids.shape[1] > limit:
        raise ElementError(
            f"A text has {ids.shape[1]} tokens, but the model accepts at most {limit}. To fix this, truncate it: "
            f"RunInference(handler, inference_args={hint})."
        )


@functools.cache
def _define_class(base: Any) -> type:
    """Define a subclass of a pipeline class that locks its tokenizer and groups its inputs."""
    # Imported late, because it takes seconds.
    pipelines = need("transformers.pipelines.base", extra="transformers")
    iterators = need("transformers.pipelines.pt_utils", extra="transformers")
    is_chunked = issubclass(base, pipelines.ChunkPipeline)

    class BatchedPipeline(base):  # type: ignore[misc]
        def preprocess(self, *args: Any, **kwargs: Any) -> Any:
            # The processes that load data in parallel have their own tokenizers.
            if self.tokenizer is None or torch.utils.data.get_worker_info() is not None:
                return super().preprocess(*args, **kwargs)
            lock = get_lock(self.tokenizer)
            if is_chunked:
                return _iterate_locked(super().preprocess(*args, **kwargs), lock)
            with lock:
                return super().preprocess(*args, **kwargs)

        def get_iterator(
            self,
            inputs: Any,
            num_workers: int,
            batch_size: int,
            preprocess_params: Any,
            forward_params: Any,
            postprocess_params: Any,
        ) -> Any:
            params = (preprocess_params, forward_params, postprocess_params)
            if batch_size == 1:
                return super().get_iterator(inputs, num_workers, batch_size, *params)
            if is_chunked:
                kind = iterators.PipelineChunkIterator
            elif isinstance(inputs, Sized):
                kind = iterators.PipelineDataset
            else:
                kind = iterators.PipelineIterator
            if kind is not iterators.PipelineDataset:
                num_workers = min(num_workers, 1)  # each process would go through all inputs
            items = torch.utils.data.DataLoader(
                kind(inputs, self.preprocess, preprocess_params),
                num_workers=num_workers,
                batch_size=1,
                collate_fn=pipelines.no_collate_fn,
            )
            outputs = self.call_on_batches(items, batch_size, forward_params)
            if is_chunked:
                outputs = _join_chunks(outputs)
            return iterators.PipelineIterator(outputs, self.postprocess, postprocess_params)

        def call_on_batches(self, items: Any, batch_size: int, params: Any) -> Iterator[Any]:
            """Yield the output of the model for each item, in order."""
            is_padded = self.batch_mode is BatchMode.PADDED
            if is_padded and _has_class(self, _GENERATION_PIPELINES):
                args = {**self.load_pipeline_args, **params}
                is_padded = not depends_on_padded_prompt(self.model, args)
            iterator = iter(items)
            while batch := list(itertools.islice(iterator, batch_size)):
                outputs: list[Any] = [None] * len(batch)
                for indices in _group(batch, is_padded):
                    group = [batch[index] for index in indices]
                    for index, output in zip(
                        indices, self.call_on_group(group, is_padded, params), strict=True
                    ):
                        outputs[index] = output
                yield from outputs

        def call_on_group(self, group: Sequence[Any], is_padded: bool, params: Any) -> list[Any]:
            if len(group) == 1:
                return [self.forward(group[0], **params)]
            join = pipelines.pad_collate_fn(self.tokenizer, None) if is_padded else _concat
            batches = iterators.PipelineIterator([join(group)], self.forward, params, len(group))
            try:
                return list(batches)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
            # Some pipelines support no batches, and any of the inputs may be invalid.
            return [self.forward(item, **params) for item in group]

    BatchedPipeline.__name__ = base.__name__
    return BatchedPipeline


def _group(items: Sequence[Any], is_padded: bool) -> list[list[int]]:
    """Return the indices of the items that can share a call."""
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(_get_group_key(item, index, is_padded), []).append(index)
    return [*groups.values()]


def _get_group_key(item: Any, index: int, is_padded: bool) -> Hashable:
    if not hasattr(item, "keys"):
        return index
    arrays = {key: item[key] for key in sorted(item) if hasattr(item[key], "shape")}
    if any(0 in array.shape for array in arrays.values()):
        return index
    shapes = [None if is_padded else tuple(array.shape) for array in arrays.values()]
    return (*sorted(item), *shapes, *(array.dtype for array in arrays.values()))


def _concat(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate the tensors of items, which have a first dimension of 1, and list all other values."""
    joined = {key: [item[key] for item in items] for key in items[0]}
    return {
        key: torch.cat(values) if isinstance(values[0], torch.Tensor) and values[0].ndim else values
        for key, values in joined.items()
    }


def _join_chunks(outputs: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield the outputs for the chunks of each input."""
    chunks: list[Any] = []
    for output in outputs:
        is_last = output.pop("is_last")
        chunks.append(output)
        if is_last:
            yield chunks
            chunks = []


def _iterate_locked(iterable: Iterable[Any], lock: AbstractContextManager[Any]) -> Iterator[Any]:
    """Yield the items of an iterable, and hold a lock while each is created."""
    iterator, end = iter(iterable), object()
    while True:
        with lock:
            item = next(iterator, end)
        if item is end:
            return
        yield item
