"""Classifiers of every framework return labels and probabilities of classes as typed columns."""

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.svm import LinearSVC

from row_models import LABELS, PEOPLE, people_handler, people_model, people_rows, save, sum_handler
from runinference import KeyedModelHandler, ModelHandler, RunInference
from runinference.errors import OptionError, ResultMismatchError
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas

FRAME = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0] * 8, "b": [1, 1, 0, 0] * 8})
BINARY = (FRAME.a > 1).astype(int)
CLASSES = (FRAME.a + FRAME.b).astype(int) % 3


def check(handler, expected, labels):
    """Check the columns of rows and tables, and their schema."""
    names = [f"p_{i}" for i in range(expected.shape[1])]
    rows = FRAME.to_dict("records")
    found = handler.predict(rows, output="label", keep=[], probabilities="p_{}")
    assert [row.label for row in found] == labels.tolist()
    actual = [[getattr(row, name) for name in names] for row in found]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for table in (FRAME, pa.Table.from_pandas(FRAME)):
        [table] = handler.predict([table], output="label", keep=["a"], probabilities="p_{}")
        columns = table.column_names if isinstance(table, pa.Table) else list(table.columns)
        assert columns == ["a", "label", *names]
        np.testing.assert_allclose(np.stack([table[n].to_numpy() for n in names], 1), expected)
        assert table["label"].to_numpy().tolist() == labels.tolist()
    schema = RowTypeConstraint.from_fields([("a", float), ("b", int)])
    infer = RunInference(handler, output={"label": int}, keep=[], probabilities={1: "p"})
    source = beam.Pipeline() | beam.Create([]).with_output_types(schema)
    assert (source | infer).element_type == RowTypeConstraint.from_fields(
        [("label", int), ("p", float)]
    )
    with pytest.raises(OptionError, match="has no class 9 .probabilities.. Its classes are 0, 1"):
        RunInference(handler, probabilities={9: "p"})


@pytest.mark.parametrize("target", [BINARY, CLASSES], ids=["binary", "multiclass"])
def test_xgboost(target, tmp_path):
    from runinference.xgboost_inference import XGBoostModelHandlerNumpy, XGBoostModelHandlerPandas

    path = str(tmp_path / "model.ubj")
    model = xgboost.XGBClassifier(n_estimators=3).fit(FRAME, target)
    model.save_model(path)
    for handler in (XGBoostModelHandlerPandas, XGBoostModelHandlerNumpy):
        for kind in (xgboost.XGBClassifier, xgboost.Booster):
            check(handler(kind, path), model.predict_proba(FRAME), model.predict(FRAME))
    handler = XGBoostModelHandlerPandas(xgboost.Booster, path)
    with pytest.raises(OptionError, match="With output_margin"):
        handler.predict([FRAME], {"output_margin": True}, probabilities="p_{}")
    xgboost.XGBRegressor(n_estimators=1).fit(FRAME, target).save_model(path)
    with pytest.raises(OptionError, match="predicts no probabilities"):
        RunInference(handler, probabilities="p_{}")


@pytest.mark.parametrize("target", [BINARY, CLASSES], ids=["binary", "multiclass"])
def test_lightgbm(target, tmp_path):
    lightgbm = pytest.importorskip("lightgbm")
    from runinference.lightgbm_inference import (
        LightGBMModelHandlerNumpy,
        LightGBMModelHandlerPandas,
    )

    path, options = str(tmp_path / "model.txt"), {"min_child_samples": 1, "verbose": -1}
    model = lightgbm.LGBMClassifier(n_estimators=3, **options).fit(FRAME, target)
    model.booster_.save_model(path)
    for handler in (LightGBMModelHandlerPandas, LightGBMModelHandlerNumpy):
        check(handler(path), model.predict_proba(FRAME), model.predict(FRAME))
    lightgbm.LGBMRegressor(n_estimators=1, **options).fit(FRAME, target).booster_.save_model(path)
    with pytest.raises(OptionError, match="predicts no probabilities"):
        RunInference(LightGBMModelHandlerPandas(path), probabilities="p_{}")


def test_sklearn(tmp_path):
    for target in (BINARY, CLASSES):
        model = LogisticRegression().fit(FRAME, target)
        arrays = LogisticRegression().fit(FRAME.to_numpy(), target)
        expected = model.predict_proba(FRAME), model.predict(FRAME)
        check(SklearnModelHandlerPandas(save(model, tmp_path)), *expected)
        handler = SklearnModelHandlerNumpy(save(arrays, tmp_path, "arrays.pkl"))
        options = {"columns": ["a", "b"], "keep": [], "probabilities": {1: "p"}}
        found = handler.predict([FRAME], **options)
        np.testing.assert_allclose(found[0]["p"], expected[0][:, 1])


def test_the_label_is_that_of_predict(tmp_path):
    always = FixedThresholdClassifier(people_model(), threshold=0.0, pos_label="yes")
    always.fit(PEOPLE, LABELS)
    handler = SklearnModelHandlerPandas(save(always, tmp_path))
    found = handler.predict(people_rows(), keep=[], probabilities={"yes": "p"})
    assert {row.prediction for row in found} == {"yes"}
    assert min(row.p for row in found) < 0.5


def test_hugging_face_text_classification(tmp_path):
    pytest.importorskip("transformers")
    from runinference import samples
    from runinference.huggingface_inference import HuggingFacePipelineModelHandler

    path = samples.review_classifier()
    handler = HuggingFacePipelineModelHandler("text-classification", path, device="CPU")
    texts = ["A great movie", "A boring and bad movie"]
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    scores = handler.predict(texts, {"top_k": None})
    infer = RunInference(handler, columns="text", output="label", keep="id", probabilities="p_{}")
    with beam.Pipeline() as pipeline:
        found = pipeline | beam.Create(rows) | infer
        names = [f"p_{each['label']}" for each in scores[0].inference]
        fields = dict(found.element_type._fields)
        assert {name: fields[name] for name in ("label", *names)} == {
            "label": str,
            **dict.fromkeys(names, float),
        }
        expected = [
            (
                i,
                each.inference[0]["label"],
                {x["label"]: round(x["score"], 5) for x in each.inference},
            )
            for i, each in enumerate(scores)
        ]
        found |= beam.Map(
            lambda row: (
                row.id,
                row.label,
                {n.removeprefix("p_"): round(getattr(row, n), 5) for n in names},
            )
        )
        assert_that(found, equal_to(expected))
    with pytest.raises(OptionError, match="top_k in inference_args"):
        handler.predict(rows, {"top_k": 1}, columns="text", probabilities="p_{}")
    with pytest.raises(OptionError, match="no class 'positiv'"):
        RunInference(handler, columns="text", probabilities={"positiv": "p"})


def test_keys_and_dead_letters(tmp_path):
    handler = KeyedModelHandler(people_handler(tmp_path, min_batch_size=8))
    bad = {**people_rows()[0], "age": "old"}
    elements = [(row["id"], row) for row in [*people_rows(), bad]]
    model = people_model()
    with beam.Pipeline() as pipeline:
        infer = RunInference(handler, keep=[], probabilities="p_{}").with_exception_handling()
        results, failed = pipeline | beam.Create(elements) | infer
        found = results | beam.MapTuple(lambda k, row: (k, row.prediction, round(row.p_yes, 6)))
        probabilities = model.predict_proba(PEOPLE)[:, 1].round(6).tolist()
        expected = [*zip(range(6), model.predict(PEOPLE).tolist(), probabilities, strict=True)]
        assert_that(found, equal_to(expected))
        letters = failed.failed_inferences | beam.Map(lambda letter: letter[0])
        assert_that(letters, equal_to([(0, bad)]), label="DeadLetters")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probabilities": "p"}, r"lacks \{\}.* probabilities='p_\{\}'"),
        ({"probabilities": {}}, "must be a pattern"),
        ({"probabilities": ["yes"]}, "must be a pattern"),
        ({"probabilities": {"yes": 3}}, "class 'yes' the column 3"),
        ({"probabilities": {"yess": "p"}}, "no class 'yess'.* Did you mean 'yes'"),
        ({"probabilities": {"yes": "p", "no": "p"}}, "two columns one name"),
        (
            {"probabilities": {"yes": "prediction"}},
            "'prediction' is in probabilities and in output",
        ),
        ({"probabilities": "{}", "keep": ["yes"]}, "'yes' is in probabilities and in keep"),
        ({"probabilities": "p_{}", "output": ["a", "b"]}, "output names 2 columns"),
    ],
)
def test_wrong_columns_are_an_error_before_any_row_is_read(options, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        people_handler(tmp_path).predict([], **options)


def test_a_column_of_the_rows_with_the_name_of_a_probability_is_an_error(tmp_path):
    fields = {"age": int, "income": float, "city": str, "p_yes": float}
    rows = beam.Pipeline() | beam.Create([]).with_output_types(
        RowTypeConstraint.from_fields([*fields.items()])
    )
    with pytest.raises(OptionError, match="already have a column 'p_yes'"):
        rows | RunInference(people_handler(tmp_path), probabilities="p_{}")


class _Scaled(SklearnModelHandlerNumpy):
    def run_inference(self, batch, model, inference_args=None):
        return super().run_inference(batch / 10, model, inference_args)


class _Custom(ModelHandler):
    pass


def test_models_without_probabilities_are_an_error(tmp_path):
    svm = SklearnModelHandlerNumpy(save(LinearSVC().fit(FRAME.to_numpy(), BINARY), tmp_path))
    regression = sum_handler(tmp_path)
    function = sum_handler(tmp_path, inference_fn=lambda model, batch, args: batch)
    for handler in (svm, regression, function):
        with pytest.raises(OptionError, match="predicts no probabilities of classes"):
            RunInference(handler, columns=["a", "b"], probabilities="p_{}")
    scaled = _Scaled(save(LinearRegression().fit(FRAME.to_numpy(), BINARY), tmp_path))
    for handler in (scaled, _Custom()):
        with pytest.raises(OptionError, match="returns no probabilities of classes"):
            RunInference(handler, columns=["a", "b"], probabilities="p_{}")


def test_a_model_that_cannot_be_read_needs_the_names_and_another_model_fails(tmp_path):
    handler = SklearnModelHandlerPandas(str(tmp_path / "later.pkl"))
    options = {"columns": ["a", "b"], "output": {"label": int}}
    with pytest.raises(
        OptionError, match=r"classes .* are not known .*probabilities=\{class: name\}"
    ):
        RunInference(handler, probabilities="p_{}", **options)
    RunInference(handler, probabilities={1: "p"}, **options)
    path = save(LogisticRegression().fit(FRAME, BINARY), tmp_path)
    handler = SklearnModelHandlerPandas(path)
    options = {"output": "label", "keep": []}
    handler.predict([FRAME], probabilities="p_{}", **options)
    infer = RunInference(handler, probabilities="p_{}", **options)
    save(LogisticRegression().fit(FRAME, CLASSES), tmp_path)
    with (
        pytest.raises(ResultMismatchError, match="a class 2, which the model that the pipeline"),
        beam.Pipeline() as pipeline,
    ):
        pipeline | beam.Create([FRAME]) | infer
