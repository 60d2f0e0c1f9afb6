"""Tests of examples/xgboost_classification.py."""

import re

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer, load_iris

from runinference.errors import BatchShapeError


def test_classifies_held_out_tumors_by_default(run_example):
    printed = run_example("xgboost_classification")
    written = pd.read_csv(re.search(r"Classified: (\S+\.csv)", printed)[1])
    tumors, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    assert list(written.columns) == [*tumors.columns, "predicted", "probability"]
    assert len(written) == 143
    known = {
        tuple(row): label for row, label in zip(tumors.to_numpy().round(6), labels, strict=True)
    }
    truth = [known[tuple(row)] for row in written[tumors.columns].to_numpy().round(6)]
    assert np.mean(written["predicted"] == truth) > 0.9
    assert written["probability"].between(0.5, 1).all()


def test_accepts_a_table_and_a_multiclass_model(load_example, tmp_path):
    flowers, labels = load_iris(return_X_y=True, as_frame=True)
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(flowers, labels)
    model.save_model(tmp_path / "iris.json")
    flowers.to_csv(tmp_path / "in.csv", index=False)
    load_example("xgboost_classification").run(
        [
            *("--input", str(tmp_path / "in.csv")),
            *("--output", str(tmp_path / "out.csv")),
            *("--model_path", str(tmp_path / "iris.json")),
        ]
    )
    written = pd.read_csv(tmp_path / "out.csv")
    assert written["predicted"].tolist() == model.predict(written[flowers.columns]).tolist()
    probabilities = model.predict_proba(written[flowers.columns]).max(axis=1)
    np.testing.assert_allclose(written["probability"], probabilities, rtol=1e-5)


def test_unknown_columns_are_named_in_the_error(load_example, tmp_path):
    flowers, labels = load_iris(return_X_y=True, as_frame=True)
    xgboost.XGBClassifier(n_estimators=5).fit(flowers, labels).save_model(tmp_path / "iris.json")
    flowers.rename(columns={flowers.columns[0]: "size"}).to_csv(tmp_path / "in.csv", index=False)
    arguments = ["--input", str(tmp_path / "in.csv"), "--model_path", str(tmp_path / "iris.json")]
    with pytest.raises(BatchShapeError, match="unknown to the model: size"):
        load_example("xgboost_classification").run(arguments)
