"""Tests of examples/table_regression.py."""

import pickle
import re
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from runinference import samples
from runinference.errors import ModelNotFoundError


def test_predicts_for_the_held_out_patients_by_default(run_example):
    printed = run_example("table_regression")
    written = pd.read_csv(re.search(r"Predictions: (\S+\.csv)", printed)[1])
    patients, progression = samples.held_out_diabetes()
    assert list(written.columns) == [*patients.columns, "progression", "prediction"]
    assert len(written) == len(patients)

    written = written.sort_values(list(patients.columns), ignore_index=True)
    expected = patients.assign(progression=progression)
    expected = expected.sort_values(list(patients.columns), ignore_index=True)
    pd.testing.assert_frame_equal(written[expected.columns], expected)

    model = pickle.loads(Path(samples.diabetes_regressor()).read_bytes())
    np.testing.assert_allclose(written["prediction"], model.predict(expected), rtol=1e-9)
    error = np.abs(written["prediction"] - written["progression"]).mean()
    mean_guess = np.abs(written["progression"] - written["progression"].mean()).mean()
    assert error < 0.75 * mean_guess


def test_accepts_a_table_an_output_path_and_a_model(load_example, tmp_path):
    table = pd.DataFrame({"width": [1.0, 2.0, 3.0], "height": [1.0, 1.0, 5.0], "area": [1, 2, 15]})
    table.to_csv(tmp_path / "in.csv", index=False)
    model = LinearRegression().fit(table[["width", "height", "area"]], table["area"] * 10.0)
    joblib.dump(model, tmp_path / "model.joblib")
    load_example("table_regression").run(
        [
            *("--input", str(tmp_path / "in.csv")),
            *("--output", str(tmp_path / "out.csv")),
            *("--model_path", str(tmp_path / "model.joblib")),
            *("--model_file_type", "JOBLIB"),
            *("--chunk_size", "2"),
            "--job_name=passed-through-to-beam",
        ]
    )
    written = pd.read_csv(tmp_path / "out.csv").sort_values("width", ignore_index=True)
    assert list(written.columns) == ["width", "height", "area", "prediction"]
    np.testing.assert_allclose(written["prediction"], [10, 20, 150])


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("table_regression").run(["--model_path", missing])


def test_missing_table_is_named_in_the_error(load_example, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        load_example("table_regression").run(["--input", str(tmp_path / "nowhere.csv")])
