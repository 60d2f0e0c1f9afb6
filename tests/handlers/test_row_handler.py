"""A handler predicts on rows and tables, and returns them with its predictions as columns."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from row_models import PEOPLE, people_handler, people_model, people_rows, save, sum_handler
from runinference import KeyedModelHandler, KeyModelMapping, ModelHandler, PredictionResult
from runinference.errors import (
    ElementError,
    OptionError,
    ResultMismatchError,
    UnknownOptionError,
)
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas


class Person(NamedTuple):
    id: int
    age: int
    income: float
    city: str


@dataclasses.dataclass
class PersonData:
    id: int
    age: int
    income: float
    city: str


class MeanOfColumns:
    def predict(self, rows):
        return np.asarray(rows, float).mean(axis=1)


KINDS = {
    "dictionary": dict,
    "beam.Row": lambda row: beam.Row(**row),
    "named tuple": lambda row: Person(**row),
    "dataclass": lambda row: PersonData(**row),
    "Series": pd.Series,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_row_gets_its_prediction_as_a_column(kind, tmp_path):
    rows = [KINDS[kind](row) for row in people_rows()]
    expected = people_model().predict(PEOPLE)
    found = people_handler(tmp_path).predict(rows, output="label")
    assert found == [
        beam.Row(**row, label=label) for row, label in zip(people_rows(), expected, strict=True)
    ]
    assert {type(row.label) for row in found} == {str}


def test_a_row_can_have_a_column_with_the_name_of_a_method(tmp_path):
    row = beam.Row(as_dict=1, **people_rows()[0])
    [found] = people_handler(tmp_path).predict([row], output="p", keep=["as_dict"])
    assert found == beam.Row(as_dict=1, p="no")


def test_keep_selects_the_columns_of_the_result_in_order(tmp_path):
    [row] = people_handler(tmp_path).predict(people_rows()[:1], keep=["city", "id"])
    assert row == beam.Row(city="Oslo", id=0, prediction="no")
    [row] = people_handler(tmp_path).predict(people_rows()[:1], keep=[])
    assert row == beam.Row(prediction="no")


def test_the_columns_of_an_array_are_in_the_listed_order(tmp_path):
    handler = sum_handler(tmp_path)
    rows = [{"b": 2, "id": "x", "a": 1}, {"id": "y", "a": 0.5, "b": 0}]
    found = handler.predict(rows, columns=["a", "b"], keep="id")
    assert [(row.id, round(row.prediction, 6)) for row in found] == [("x", 21), ("y", 0.5)]
    found = handler.predict([{"v": [1.0, 2.0]}, {"v": [0.5, 0.0]}], columns="v", keep=[])
    assert [round(row.prediction, 6) for row in found] == [21, 0.5]


def test_a_frame_stays_a_frame_with_its_index_and_dtypes(tmp_path):
    frame = PEOPLE.assign(
        id=pd.array([1, None, 3, 4, 5, 6], "Int64"), kind=pd.Categorical(["a"] * 6)
    )
    frame.index = pd.Index([7, 7, 3, 1, 0, 2], name="n")  # an index may repeat
    before = frame.copy()
    [found] = people_handler(tmp_path).predict([frame], output="label")
    pd.testing.assert_frame_equal(found[frame.columns], before)
    pd.testing.assert_frame_equal(frame, before)
    assert found["label"].tolist() == people_model().predict(PEOPLE).tolist()
    [found] = people_handler(tmp_path).predict([frame], keep=["id"])
    assert list(found.columns) == ["id", "prediction"]


@pytest.mark.parametrize("to_batch", [lambda t: t, lambda t: t.to_batches()[0]])
def test_an_arrow_table_stays_one_with_its_types_and_metadata(to_batch, tmp_path):
    table = pa.table(
        {"id": pa.array(range(6), pa.int16()), **PEOPLE.to_dict("list")}
    ).replace_schema_metadata({"made": "by hand"})
    chunk = to_batch(table)
    [found] = people_handler(tmp_path).predict([chunk], output="prediction")
    assert type(found) is type(chunk)
    assert found.schema.metadata == {b"made": b"by hand"}
    assert found.select(table.column_names).to_pydict() == table.to_pydict()
    assert found.schema.field("id").type == pa.int16()
    assert found["prediction"].to_pylist() == people_model().predict(PEOPLE).tolist()


def test_tables_and_rows_can_share_a_batch(tmp_path):
    elements = [PEOPLE.iloc[:2], people_rows()[2], pa.Table.from_pandas(PEOPLE.iloc[3:5])]
    frame, row, table = people_handler(tmp_path, min_batch_size=3).predict(elements, keep=[])
    expected = people_model().predict(PEOPLE).tolist()
    found = [*frame["prediction"], row.prediction, *table["prediction"].to_pylist()]
    assert found == expected[:5]


def test_a_table_without_rows_gets_the_column_without_calling_the_model(tmp_path):
    empty = PEOPLE.iloc[:0]
    [found] = sum_handler(tmp_path).predict([empty], columns=["age", "income"])
    assert found.columns.tolist() == [*PEOPLE, "prediction"]
    assert found["prediction"].dtype == np.float64
    [found] = sum_handler(tmp_path).predict(
        [pa.Table.from_pandas(empty)], columns=["age", "income"], keep=[]
    )
    assert found.schema.field("prediction").type == pa.float64()
    [found] = people_handler(tmp_path).predict([pa.Table.from_pandas(empty)], output="p")
    assert found.schema.field("p").type == pa.string()


def test_missing_numbers_are_nan_and_the_model_decides(tmp_path):
    with pytest.raises(ElementError, match="NaN"):
        people_handler(tmp_path).predict([{**people_rows()[0], "age": None}], output="p")
    nullable = PEOPLE.astype({"age": "Int64"})
    [found] = people_handler(tmp_path).predict([nullable], output="p")
    assert found["p"].tolist() == people_model().predict(PEOPLE).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agee": 1, "age": ...}, "no column 'age'. Did you mean 'agee'"),
        ({"age": [1, 2]}, "a list in the column 'age'"),
        ({"prediction": 1}, "already has a column 'prediction'"),
        ({3: 1}, "a column with the name 3"),
    ],
)
def test_a_bad_row_raises_an_error_that_names_it(change, message, tmp_path):
    rows = people_rows()
    rows[1] = {k: v for k, v in {**rows[1], **change}.items() if v is not ...}
    with pytest.raises(ElementError, match=message) as error:
        people_handler(tmp_path, min_batch_size=6).predict(rows, output="prediction")
    assert error.value.index == 1


@pytest.mark.parametrize("others", [[2**53 + 1, 0.5], [2**63 + 1, -1], [2**53 + 1, None]])
def test_integers_that_a_float_column_would_round_are_an_error(others, tmp_path):
    rows = [{"a": value, "b": 1} for value in others]
    with pytest.raises(ElementError, match=str(others[0])):
        sum_handler(tmp_path, min_batch_size=2).predict(rows, columns=["a", "b"])


def test_times_do_not_become_numbers(tmp_path):
    frame = pd.DataFrame({"a": pd.to_datetime(["2020-01-01"]), "b": 1.0})
    for element in (frame, frame.to_dict("records")[0], pa.Table.from_pandas(frame)):
        with pytest.raises(ElementError, match="numbers|Timestamp|datetime"):
            sum_handler(tmp_path).predict([element], columns=["a", "b"])


@pytest.mark.parametrize(("name", "value"), [("age", "23"), ("city", 3), ("city", b"Oslo")])
def test_a_value_of_another_type_than_the_feature_is_an_error_with_and_without_others(
    name, value, tmp_path
):
    handler, good = people_handler(tmp_path, min_batch_size=6), people_rows()
    bad = {**good[1], name: value}
    frame = pd.DataFrame([bad])
    for elements in ([bad], [good[0], bad], [frame], [pa.Table.from_pandas(frame)]):
        with pytest.raises(ElementError, match=f"has {value!r} of type .* in the column '{name}'"):
            handler.predict(elements, output="p")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_texts_have_one_prediction_with_and_without_others(missing, tmp_path):
    handler = people_handler(tmp_path, min_batch_size=6)
    rows = [{**people_rows()[0], "city": missing}, people_rows()[1]]
    expected = [row.p for row in handler.predict(rows, output="p")]
    assert [handler.predict([row], output="p")[0].p for row in rows] == expected
    frame = pd.DataFrame(rows[:1], columns=["age", "income", "city"])
    if missing is not pd.NA:  # scikit-learn takes no text columns with NA
        frames = [frame, frame.astype({"city": float if missing is np.nan else object})]
        assert [f.p[0] for f in handler.predict(frames, output="p")] == expected[:1] * 2


def test_missing_numbers_of_pandas_are_nan_for_a_model_of_arrays(tmp_path):
    handler = SklearnModelHandlerNumpy(save(MeanOfColumns(), tmp_path), min_batch_size=9)
    rows = [{"a": value, "b": 1} for value in (1, pd.NA, None, np.nan)]
    frame = pd.DataFrame({"a": pd.array([1, None, None, None], "Int64"), "b": 1})
    found = [row.p for row in handler.predict(rows, columns=["a", "b"], output="p")]
    [table] = handler.predict([frame], columns=["a", "b"], output="p")
    np.testing.assert_array_equal(found, [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(table.p, found)


def test_nan_among_texts_is_not_none_in_an_array(tmp_path):
    texts = pd.DataFrame({"c": ["x", np.nan, "x"]})
    encoder = make_pipeline(OneHotEncoder(), LinearRegression()).fit(texts.to_numpy(), [0, 1, 0])
    handler = SklearnModelHandlerNumpy(save(encoder, tmp_path), min_batch_size=3)
    [frame] = handler.predict([texts], columns=["c"], output="p")
    rows = handler.predict(texts.to_dict("records"), columns=["c"], output="p")
    np.testing.assert_allclose(frame.p, [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose([row.p for row in rows], [0, 1, 0], atol=1e-9)


def test_a_frame_with_two_columns_of_one_name_is_an_error(tmp_path):
    frame = pd.concat([PEOPLE, PEOPLE[["age"]]], axis=1)
    with pytest.raises(ElementError, match="several columns with the name 'age'"):
        people_handler(tmp_path).predict([frame], output="p")


def test_other_elements_are_an_error_that_names_what_is_possible(tmp_path):
    with pytest.raises(ElementError, match=r"a list\. With columns.*beam\.Row"):
        people_handler(tmp_path).predict([[1, 2]], output="p")
    with pytest.raises(ElementError, match=r"predict\(\[example\]\)"):
        people_handler(tmp_path).predict(pa.Table.from_pandas(PEOPLE), output="p")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["age", "incme", "city"]}, "no feature 'incme'.* Did you mean 'income'"),
        ({"columns": ["age", "city"]}, "lacks 'income'"),
        ({"columns": ["income", "age", "city"]}, "another order"),
        ({"columns": ["age", "age"]}, "'age' twice"),
        ({"columns": []}, "columns is empty"),
        ({"columns": 3}, "columns must be a list"),
        ({"output": []}, "output is empty"),
        ({"output": "id", "keep": ["id"]}, "'id' is in output and in keep"),
        ({"output": {"p": "float"}}, "declares 'float' for 'p', which is not a type"),
        (
            {"output": {"p": int}},
            r"declares int for 'p', .* have the type str.* output=\{'p': str\}",
        ),
    ],
)
def test_wrong_columns_are_an_error_before_any_row_is_read(options, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        people_handler(tmp_path).predict([], **options)


def test_a_model_without_feature_names_needs_columns(tmp_path):
    with pytest.raises(OptionError, match=r"names no features.*columns=\["):
        sum_handler(tmp_path).predict([], output="p")
    with pytest.raises(OptionError, match="3 columns.* has 2 features"):
        sum_handler(tmp_path).predict([], columns=["a", "b", "c"])


def test_outputs_with_several_parts_are_columns_or_one_structure(tmp_path):
    def predict(model, frame, args):
        label, probability = model.predict(frame), model.predict_proba(frame)
        return {"label": label, "probability": probability}, frame

    handler = SklearnModelHandlerPandas(save(people_model(), tmp_path), inference_fn=predict)
    [row] = handler.predict(people_rows()[:1], output=["label", "probability"], keep=[])
    assert row.label == "no"
    assert sum(row.probability) == pytest.approx(1)
    [row] = handler.predict(people_rows()[:1], output="result", keep=[])
    assert row.result["label"] == "no"
    [frame] = handler.predict([PEOPLE], output={"label": str, "probability": list[float]}, keep=[])
    assert frame["probability"].map(len).tolist() == [2] * 6
    [table] = handler.predict(
        [pa.Table.from_pandas(PEOPLE)], output=["label", "probability"], keep=[]
    )
    assert table.schema.field("probability").type == pa.list_(pa.float64(), 2)
    with pytest.raises(ResultMismatchError, match=r"fields label, probability.*names label, score"):
        handler.predict(people_rows()[:1], output=["label", "score"])


class _Return(ModelHandler):
    def __init__(self, *predictions):
        super().__init__(min_batch_size=len(predictions))
        self.predictions = predictions

    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(*pair) for pair in zip(batch, self.predictions, strict=True)]


@pytest.mark.parametrize(
    ("predictions", "declared", "message"),
    [
        (["a", "b"], int, r"type str, .* is int\. .*\{'p': str\}"),
        ([1.0, None], float, r"\{'p': float \| None\}"),
        ([[1.0], [2.0]], float, r"\{'p': Sequence\[float\]\}"),
        ([1, "b"], int, r"type str, .* is int"),
        ([[1.0, 2.0]], tuple[float, float], r"is tuple\[float, float\]"),
        ([[1.0]], Sequence[int], r"is Sequence\[int\]\. .*\{'p': Sequence\[float\]\}"),
    ],
)
def test_predictions_of_another_type_than_declared_are_an_error(predictions, declared, message):
    rows = [{"x": 1}] * len(predictions)
    with pytest.raises(ResultMismatchError, match=message):
        _Return(*predictions).predict(rows, columns="x", output={"p": declared})


def test_integers_in_columns_of_tables_are_not_converted():
    handler = _Return(2**53 + 1, None)
    frame = pd.DataFrame({"x": [1, 2]})
    [found] = handler.predict([frame], columns="x", output="p")
    assert found.p.tolist() == [2**53 + 1, None]
    [found] = handler.predict([pa.Table.from_pandas(frame)], columns="x", output="p")
    assert found["p"].to_pylist() == [2**53 + 1, None]
    with pytest.raises(ResultMismatchError, match="'p' can't be an Arrow column"):
        _Return(1, "x").predict([pa.Table.from_pandas(frame)], columns="x", output="p")


class _Describe(ModelHandler):
    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(each, repr(each)) for each in batch]


def test_a_custom_handler_gets_the_value_or_a_dictionary_of_each_row():
    rows = [{"text": "hi", "n": 1}, {"text": "there", "n": 2}]
    found = _Describe().predict(rows, columns="text", output="seen")
    assert [row.seen for row in found] == ["'hi'", "'there'"]
    found = _Describe().predict(rows, columns=["n", "text"], keep=["n"], output="seen")
    assert found[1] == beam.Row(n=2, seen="{'n': 2, 'text': 'there'}")


def test_keys_and_a_model_per_key_work_on_rows_and_tables(tmp_path):
    people = people_handler(tmp_path)
    arrays = SklearnModelHandlerNumpy(save(people_model(), tmp_path, "arrays.pkl"))
    keyed = [(i % 2, row) for i, row in enumerate(people_rows())]
    expected = [beam.Row(id=row.id, p=row.p) for row in people.predict(people_rows(), output="p")]
    found = KeyedModelHandler(people).predict(keyed, output="p", keep="id")
    assert found == [(key, row) for (key, _), row in zip(keyed, expected, strict=True)]
    per_key = KeyedModelHandler([KeyModelMapping([0], people), KeyModelMapping([1], people)])
    assert per_key.predict(keyed, output="p", keep="id") == found
    [(key, frame)] = per_key.predict([(1, PEOPLE)], output="p", keep=[])
    assert (key, frame["p"].tolist()) == (1, [row.p for row in expected])
    with pytest.raises(OptionError, match="lacks 'income'"):
        KeyedModelHandler(arrays).predict([], columns=["age", "city"])


def test_an_unknown_argument_of_the_call_is_named_once(tmp_path):
    with pytest.raises(UnknownOptionError) as error:
        people_handler(tmp_path).predict(people_rows(), {"speed": 1}, output="p")
    assert str(error.value).count("has no argument 'speed'") == 1


def test_functions_of_the_handler_get_and_return_rows(tmp_path):
    handler = people_handler(tmp_path)
    handler = handler.with_preprocess_fn(lambda row: {**row, "city": row["city"].title()})
    handler = handler.with_postprocess_fn(lambda row: row.prediction)
    rows = [{**row, "city": row["city"].upper()} for row in people_rows()]
    assert handler.predict(rows, output="prediction") == people_model().predict(PEOPLE).tolist()


def test_elements_can_be_batches_of_rows_but_not_unsplit(tmp_path):
    handler = people_handler(tmp_path)
    lists = handler.with_no_batching().predict([people_rows()[:4], people_rows()[4:]], keep="id")
    assert [row.id for row in lists] == [0, 1, 2, 3, 4, 5]
    assert handler.with_no_batching().predict([[]], keep="id") == []
    with pytest.raises(OptionError, match="whole_results=True has no effect on rows"):
        handler.with_no_batching(whole_results=True).predict([PEOPLE], output="p")


def test_a_changed_path_is_checked_and_loaded_again(tmp_path):
    handler = people_handler(tmp_path)
    [row] = handler.predict(people_rows()[:1], keep=[])
    flipped = people_model()
    flipped.fit(PEOPLE, ["yes", "yes", "no", "no", "no", "yes"])
    handler.update_model_path(save(flipped, tmp_path, "flipped.pkl"))
    [after] = handler.predict(people_rows()[:1], keep=[])
    assert (row.prediction, after.prediction) == ("no", "yes")
