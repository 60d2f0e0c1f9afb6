"""examples/xgboost_classification.py: a class and its probability for each row of a CSV file."""

import re

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer, load_iris

from runinference.errors import BatchShapeError


def test_by_default_it_classifies_tumours_it_has_not_seen(run_program):
    printed = run_program("xgboost_classification")
    written = pd.read_csv(re.search(r"Classified: (\S+\.csv)", printed)[1])
    tumours, kinds = load_breast_cancer(return_X_y=True, as_frame=True)
    assert list(written.columns) == [*tumours.columns, "predicted", "probability"]
    assert len(written) == 143
    known = {tuple(row): kind for row, kind in zip(tumours.to_numpy().round(6), kinds, strict=True)}
    truth = [known[tuple(row)] for row in written[tumours.columns].to_numpy().round(6)]
    assert np.mean(written["predicted"] == truth) > 0.9
    assert written["probability"].between(0.5, 1).all()


def test_it_takes_a_table_and_a_model_of_several_classes(load_example, tmp_path):
    flowers, kinds = load_iris(return_X_y=True, as_frame=True)
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(flowers, kinds)
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
    chances = model.predict_proba(written[flowers.columns]).max(axis=1)
    np.testing.assert_allclose(written["probability"], chances, rtol=1e-5)


def test_other_columns_are_named(load_example, tmp_path):
    flowers, kinds = load_iris(return_X_y=True, as_frame=True)
    xgboost.XGBClassifier(n_estimators=5).fit(flowers, kinds).save_model(tmp_path / "iris.json")
    flowers.rename(columns={flowers.columns[0]: "size"}).to_csv(tmp_path / "in.csv", index=False)
    arguments = ["--input", str(tmp_path / "in.csv"), "--model_path", str(tmp_path / "iris.json")]
    with pytest.raises(BatchShapeError, match="unknown to the model: size"):
        load_example("xgboost_classification").run(arguments)
