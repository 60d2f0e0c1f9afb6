"""Embeddings of our handlers in Beam's MLTransform."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.transforms.base import MLTransform
from transformers import BertModel

from common import run
from runinference import ModelHandler
from runinference.errors import OptionError
from runinference.huggingface_inference import HuggingFaceModelHandlerEmbedding
from runinference.ml_transform import ModelHandlerEmbeddings
from runinference.openai_inference import (
    OpenAIEmbeddingsModelHandler,
    OpenAIModelHandler,
    embedding_from_string,
)
from runinference.samples import servers
from tiny_transformers import MINILM, bert, saved

ROWS = [
    {"id": 0, "title": "the cat", "body": "a dog ran"},
    {"id": 1, "title": "good", "body": "the bad dog ran under a tree"},
    {"id": 2, "title": "the cat", "body": "mat"},
]


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    path = saved(tmp_path_factory.mktemp("embeddings"), BertModel(bert()))
    return HuggingFaceModelHandlerEmbedding(path)


@pytest.fixture
def location(tmp_path):
    return str(tmp_path / "artifacts")


def embed(location, embeddings):
    return MLTransform(write_artifact_location=location).with_transform(embeddings)


def predict(handler, texts):
    return [pytest.approx(x.inference.tolist(), abs=1e-5) for x in handler.predict(texts)]


def by_id(rows):
    rows = [row if isinstance(row, dict) else row.as_dict() for row in rows]
    return sorted(rows, key=lambda row: row["id"])


def test_vectors_replace_the_columns(handler, location):
    results = by_id(run(ROWS, embed(location, ModelHandlerEmbeddings(handler, ["title", "body"]))))
    expected = [
        {"id": row["id"], "title": title, "body": body}
        for row, title, body in zip(
            ROWS,
            predict(handler, [row["title"] for row in ROWS]),
            predict(handler, [row["body"] for row in ROWS]),
            strict=True,
        )
    ]
    assert results == expected
    assert isinstance(ROWS[0]["title"], str)


def test_vectors_are_new_columns_if_outputs_are_named(handler, location):
    embeddings = ModelHandlerEmbeddings(handler, "title", output="vector")
    results = by_id(run(ROWS, embed(location, embeddings)))
    vectors = predict(handler, [row["title"] for row in ROWS])
    assert results == [row | {"vector": x} for row, x in zip(ROWS, vectors, strict=True)]


def test_results_of_rows_with_a_schema_have_one(handler, location):
    embeddings = ModelHandlerEmbeddings(handler, ["title"], output=["vector"])
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create([beam.Row(**row) for row in ROWS])
        results = rows | embed(location, embeddings)
    found = {
        name: results.element_type.get_type_for(name) for name, _ in results.element_type._fields
    }
    assert found == {"id": int, "title": str, "body": str, "vector": Sequence[float]}


def test_a_transform_that_is_read_back_gives_the_same_results(handler, location):
    embeddings = ModelHandlerEmbeddings(handler, ["title"], output=["vector"])
    results = run(ROWS, embed(location, embeddings))
    again = run(ROWS, MLTransform(read_artifact_location=location))
    assert by_id(again) == by_id(results)


def test_several_embeddings_follow_each_other(handler, location):
    transform = embed(location, ModelHandlerEmbeddings(handler, ["title"]))
    transform = transform.with_transform(ModelHandlerEmbeddings(handler, ["body"]))
    rows = by_id(run(ROWS, transform))
    assert rows == by_id(run(ROWS, MLTransform(read_artifact_location=location)))
    assert [row["body"] for row in rows] == predict(handler, [row["body"] for row in ROWS])


def test_equals_the_embeddings_of_beam(location):
    from apache_beam.ml.transforms.embeddings.huggingface import SentenceTransformerEmbeddings

    ours = ModelHandlerEmbeddings(HuggingFaceModelHandlerEmbedding(MINILM), columns=["title"])
    beams = SentenceTransformerEmbeddings(MINILM, columns=["title"])
    results, expected = run(ROWS, embed(location, ours)), run(ROWS, embed(f"{location}-2", beams))
    assert [
        row | {"title": pytest.approx(list(row["title"]), abs=1e-5)} for row in by_id(expected)
    ] == by_id(results)


def test_exactly_the_bad_rows_become_dead_letters(handler, location):
    no_body, wrong_body = {"id": 3, "title": "cat"}, {"id": 4, "title": "cat", "body": None}
    collides = {**ROWS[0], "vector": 1}
    bad = [no_body, wrong_body, collides, "the cat"]
    embeddings = ModelHandlerEmbeddings(handler, ["title", "body"], output=["title", "vector"])
    found = {}

    class Collect(beam.PTransform):
        def expand(self, rows):
            found["good"], found["bad"] = (
                rows | embed(location, embeddings).with_exception_handling()
            )
            return (
                found["good"] | "Good" >> beam.Map(lambda row: ("good", row["id"])),
                found["bad"] | "Bad" >> beam.Map(lambda row: (row.element, row.msg)),
            ) | beam.Flatten()

    results = run([*ROWS, *bad], Collect())
    assert sorted(x for name, x in results if name == "good") == [0, 1, 2]
    messages = {json.dumps(row): message for row, message in results if row != "good"}
    assert messages.keys() == {json.dumps(row) for row in bad}
    for row, message in zip(
        bad, ["no column 'body'", "NoneType", "'vector'", "is a str"], strict=True
    ):
        assert message in messages[json.dumps(row)]


class CountedLoads(ModelHandler[str, np.ndarray, int]):
    """Returns a vector with the number of models that were loaded."""

    loads = 0

    def load_model(self):
        type(self).loads += 1
        return self.loads

    def run_inference(self, batch, model, inference_args=None):
        return np.full((len(batch), 2), model + (inference_args or {}).get("add", 0))


def test_columns_share_a_model(location):
    embeddings = ModelHandlerEmbeddings(
        CountedLoads(),
        ["title", "body"],
        output={"title": Sequence[int], "body": Sequence[int]},
        inference_args={"add": 10},
    )
    results = run(ROWS, embed(location, embeddings))
    assert [(row["title"], row["body"]) for row in results] == [([11, 11], [11, 11])] * 3


def test_remote_models_embed_columns(location):
    with servers.llm() as base_url:
        remote = OpenAIEmbeddingsModelHandler(base_url, model="words", api_key_env=None)
        results = by_id(run(ROWS, embed(location, ModelHandlerEmbeddings(remote, ["title"]))))
        vectors = [x.inference.tolist() for x in remote.predict([row["title"] for row in ROWS])]
    assert [row["title"] for row in results] == vectors


def test_artifacts_contain_no_api_key(location, tmp_path):
    remote = OpenAIModelHandler("words", embedding_from_string, "sk-secret-key")
    rows = beam.Pipeline() | beam.Create(ROWS)
    _ = rows | embed(location, ModelHandlerEmbeddings(remote, ["title"]))
    [text] = re.findall('"([^"]{200,})"', (tmp_path / "artifacts" / "attributes.json").read_text())
    assert b"words" in base64.b64decode(text)
    assert b"sk-secret" not in base64.b64decode(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": []}, "columns is empty"),
        ({"columns": ["title", "title"]}, "'title' twice"),
        ({"columns": ["title", "body"], "output": "vector"}, "one output for each column"),
    ],
)
def test_invalid_columns_raise_errors(handler, options, message):
    with pytest.raises(OptionError, match=message):
        ModelHandlerEmbeddings(handler, **options)


@pytest.mark.parametrize(
    ("column", "output", "message"),
    [("titel", None, "Did you mean 'title'"), ("title", "body", "already have a column 'body'")],
)
def test_columns_are_checked_before_the_pipeline_runs(column, output, message, handler, location):
    rows = beam.Pipeline() | beam.Create([beam.Row(**row) for row in ROWS])
    with pytest.raises(OptionError, match=message):
        rows | embed(location, ModelHandlerEmbeddings(handler, column, output=output))


def test_a_handler_that_no_other_program_could_load_raises_an_error():
    handler = CountedLoads(batch_length_fn=lambda text: 1, batch_bucket_boundaries=[1])
    with pytest.raises(OptionError, match="at the top level of a module"):
        ModelHandlerEmbeddings(handler, ["title"])


def test_vectors_of_another_type_than_declared_raise_an_error(location):
    with pytest.raises(Exception, match="declared type is"):
        run(ROWS, embed(location, ModelHandlerEmbeddings(CountedLoads(), ["title"])))
