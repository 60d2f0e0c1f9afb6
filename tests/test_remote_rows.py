"""Rows are predicted by models behind HTTP endpoints and OpenAI-compatible APIs, and by Hugging Face models."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from transformers import BertForSequenceClassification, BertModel

from runinference import Backoff, KeyedModelHandler, RunInference, samples
from runinference.errors import BatchShapeError, ElementError, ResultMismatchError
from runinference.http_inference import HTTPModelHandler, KServeV2, TFServing, TFServingColumns
from runinference.huggingface_inference import (
    HuggingFaceModelHandlerEmbedding,
    HuggingFaceModelHandlerText,
    HuggingFacePipelineModelHandler,
)
from runinference.openai_inference import (
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
    OpenAIEmbeddingsModelHandler,
)
from runinference.samples import servers
from tiny_transformers import TEXTS, bert, saved

NO_DELAY = {"backoff": Backoff(initial_secs=0), "throttle_delay_secs": 0}


class Question(NamedTuple):
    id: int
    text: str


@pytest.fixture(scope="module")
def llm():
    with servers.llm() as url:
        yield url


def chat(url, **options):
    return OpenAIChatModelHandler(url, "shout", api_key_env=None, **NO_DELAY, **options)


def text_rows(texts=TEXTS):
    """Return rows of all kinds."""
    kinds = [
        lambda row: row,
        lambda row: beam.Row(**row),
        lambda row: Question(**row),
        pd.Series,
    ]
    return [kinds[i % 4]({"id": i, "text": text}) for i, text in enumerate(texts)]


def tables(texts=TEXTS):
    frame = pd.DataFrame({"id": range(len(texts)), "text": texts})
    return [frame, pa.Table.from_pandas(frame, preserve_index=False)]


def test_a_language_model_answers_each_kind_of_row(llm):
    answers = [text.upper() for text in TEXTS]
    completions = OpenAICompletionsModelHandler(llm, "shout", api_key_env=None, **NO_DELAY)
    for handler in (chat(llm), completions):
        options = {"columns": "text", "output": {"text": str}}
        found = handler.predict(text_rows(), keep="id", **options)
        assert found == [beam.Row(id=i, text=answer) for i, answer in enumerate(answers)]
    for found in chat(llm).predict(tables(), keep=["id"], **options):
        assert found["text"].to_numpy().tolist() == answers
    options["output"] = ["text", "finish_reason"]
    [row] = chat(llm).predict(text_rows(["hi"]), keep=[], **options)
    assert row == beam.Row(text="HI", finish_reason="stop")
    [row] = chat(llm).predict(text_rows(["hi"]), columns="text", keep=[])
    assert row.prediction.usage["total_tokens"] == 2
    with pytest.raises(ResultMismatchError, match="has the fields text, .* names text, tokens"):
        chat(llm).predict(text_rows(["hi"]), columns="text", keep=[], output=["text", "tokens"])


def test_exactly_the_rows_that_a_language_model_rejects_become_dead_letters(llm):
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    bad = [{"id": 7, "text": "long " * 200}, {"id": 8, "text": None}, {"id": 9}]
    keyed = [(row["id"] % 2, row) for row in [*rows[:2], *bad, *rows[2:]]]
    handler = KeyedModelHandler(chat(llm, min_batch_size=len(keyed)))
    infer = RunInference(handler, columns="text", output={"text": str}, keep="id")
    with beam.Pipeline() as pipeline:
        results, failed = pipeline | beam.Create(keyed) | infer.with_exception_handling()
        row_type = RowTypeConstraint.from_fields([("id", Any), ("text", str)])
        assert results.element_type.tuple_types == (int, row_type)
        expected = [
            (row["id"] % 2, beam.Row(id=row["id"], text=row["text"].upper())) for row in rows
        ]
        assert_that(results, equal_to(expected))
        letters = failed.failed_inferences | beam.Map(lambda letter: letter[0][1])
        assert_that(letters, equal_to(bad), label="DeadLetters")


def test_embeddings_are_a_column_of_vectors(llm, tmp_path):
    endpoint = OpenAIEmbeddingsModelHandler(llm, "words", api_key_env=None, **NO_DELAY)
    local = HuggingFaceModelHandlerEmbedding(saved(tmp_path, BertModel(bert())))
    for handler in (endpoint, local):
        expected = [np.asarray(x.inference).tolist() for x in handler.predict(TEXTS)]
        options = {"columns": "text", "output": {"vector": Sequence[float]}, "keep": ["id"]}
        found = handler.predict(text_rows(), **options)
        np.testing.assert_allclose([row.vector for row in found], expected, atol=1e-5)
        assert {type(x) for row in found for x in row.vector} == {float}
        for table in handler.predict(tables(), **options):
            vectors = np.stack(table["vector"].to_numpy().tolist())
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def pixel_rows(n_rows):
    images, _ = samples.held_out_digits()
    return [{"id": i, "pixels": image} for i, image in enumerate(images[:n_rows])]


def test_a_model_server_gets_the_values_of_a_column():
    with servers.digits() as url:
        rows = pixel_rows(5)
        lists = [{**row, "pixels": row["pixels"].tolist()} for row in rows]
        for protocol in (KServeV2, TFServing, TFServingColumns):
            handler = HTTPModelHandler(url, protocol("digits"), **NO_DELAY)
            digits = [int(x.inference) for x in handler.predict([row["pixels"] for row in rows])]
            expected = [beam.Row(id=i, digit=digit) for i, digit in enumerate(digits)]
            for elements in (rows, lists, [pd.DataFrame(rows)], [pa.Table.from_pylist(lists)]):
                found = handler.predict(
                    elements, columns="pixels", keep="id", output={"digit": int}
                )
                if len(elements) == 1:
                    assert np.asarray(found[0]["digit"]).tolist() == digits
                else:
                    assert found == expected
        outputs = KServeV2("digits", outputs=("label", "probabilities"))
        options = {"columns": "pixels", "output": {"label": int, "probabilities": list[float]}}
        found = HTTPModelHandler(url, outputs, **NO_DELAY).predict(rows, keep=[], **options)
        assert [row.label for row in found] == digits
        assert [int(np.argmax(row.probabilities)) for row in found] == digits


def test_exactly_the_rows_that_a_model_server_rejects_become_dead_letters():
    rows = pixel_rows(4)
    bad = [{"id": 7, "pixels": [1.0, 2.0]}, {"id": 8, "pixels": None}, {"id": 9, "pixel": []}]
    with servers.digits() as url, beam.Pipeline() as pipeline:
        handler = HTTPModelHandler(url, KServeV2("digits"), min_batch_size=7, **NO_DELAY)
        infer = RunInference(handler, columns="pixels", output={"digit": int}, keep="id")
        results, failed = (
            pipeline | beam.Create([*rows[:2], *bad, *rows[2:]]) | infer.with_exception_handling()
        )
        assert_that(results | beam.Map(lambda row: row.id), equal_to([0, 1, 2, 3]))
        letters = failed.failed_inferences | beam.Map(lambda letter: letter[0])
        assert_that(letters, equal_to(bad), label="DeadLetters")
        with pytest.raises(BatchShapeError, match=r"Element 1 of the batch has shape \(2,\)"):
            handler.predict([*rows[:1], bad[0], rows[2]], columns="pixels")


def test_hugging_face_models_get_the_texts_of_a_column(tmp_path):
    path = saved(tmp_path, BertForSequenceClassification(bert(num_labels=3)))
    text = HuggingFaceModelHandlerText(path, BertForSequenceClassification)
    pipeline = HuggingFacePipelineModelHandler("text-classification", path, device="CPU")
    logits = [x.inference["logits"].tolist() for x in text.predict(TEXTS)]
    labels = [x.inference["label"] for x in pipeline.predict(TEXTS)]
    for elements in (text_rows(), tables()[:1]):
        found = text.predict(elements, columns="text", output="logits", keep=["id"])
        vectors = [row.logits for row in found] if len(found) > 1 else list(found[0].logits)
        np.testing.assert_allclose(vectors, logits, atol=1e-5)
        found = pipeline.predict(
            elements, columns="text", output={"label": str, "score": float}, keep=["id"]
        )
        names = [row.label for row in found] if len(found) > 1 else found[0].label.tolist()
        assert names == labels
    bad = [{"id": 7, "text": None}, {"id": 8, "text": 3}]
    rows = [(row["id"], row) for row in [*pd.DataFrame(text_rows()[:0]).to_dict("records"), *bad]]
    rows += [(i, {"id": i, "text": x}) for i, x in enumerate(TEXTS)]
    keyed = KeyedModelHandler(text)
    infer = RunInference(keyed, columns="text", output="logits", keep=["id"])
    with beam.Pipeline() as beam_pipeline:
        results, failed = beam_pipeline | beam.Create(rows) | infer.with_exception_handling()
        found = results | beam.MapTuple(lambda key, row: (key, row.id, len(row.logits)))
        assert_that(found, equal_to([(i, i, 3) for i in range(len(TEXTS))]))
        letters = failed.failed_inferences | beam.Map(lambda letter: letter[0][1])
        assert_that(letters, equal_to(bad), label="DeadLetters")
    with pytest.raises(ElementError):
        text.predict(bad, columns="text")
