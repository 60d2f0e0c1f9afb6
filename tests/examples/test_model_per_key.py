"""Tests of examples/model_per_key.py."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from runinference import samples
from runinference.errors import UnknownKeyError


def test_uses_one_model_per_age_band_by_default(run_example):
    printed = run_example("model_per_key")
    written = pd.read_csv(re.search(r"Predictions: (\S+\.csv)", printed)[1])
    patients, progression = samples.held_out_diabetes()
    assert list(written.columns) == ["age_band", *patients.columns, "prediction"]
    assert set(written.age_band) == {"young", "middle", "old"}
    assert (written.age_band == "young").tolist() == (written.age <= 40).tolist()
    assert (written.age_band == "old").tolist() == (written.age > 60).tolist()

    known = patients.assign(progression=progression)
    joined = written.merge(known, on=list(patients.columns), how="left")
    assert len(joined) == len(patients) == joined.progression.count()
    error = np.abs(joined.prediction - joined.progression).mean()
    mean_guess = np.abs(progression - progression.mean()).mean()
    assert error < 0.75 * mean_guess


@pytest.fixture
def cities(tmp_path):
    """Write rows of three cities and a model per city that multiplies by a different factor."""
    rows = pd.DataFrame({"city": ["oslo", "rome", "oslo", "0047"], "x": [1.0, 2.0, 3.0, 4.0]})
    rows.to_csv(tmp_path / "in.csv", index=False)
    for city, factor in [("oslo", 10), ("rome", 100), ("0047", 1000)]:
        one, two = pd.DataFrame({"x": [0.0, 1.0]}), [0, factor]
        (tmp_path / f"{city}.pickle").write_bytes(pickle.dumps(LinearRegression().fit(one, two)))
    return tmp_path


def make_arguments(folder, **overrides):
    values = {
        "input": folder / "in.csv",
        "output": folder / "out.csv",
        "models": folder / "*.pickle",
        "key": "city",
        **overrides,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def test_accepts_a_table_a_key_column_and_a_folder_of_models(load_example, cities):
    load_example("model_per_key").run([*make_arguments(cities, max_models=1), "--job_name=of-beam"])
    written = pd.read_csv(cities / "out.csv", dtype={"city": str}).sort_values("x")
    assert written.city.tolist() == ["oslo", "rome", "oslo", "0047"]
    np.testing.assert_allclose(written.prediction, [10, 200, 30, 4000])


def test_key_without_a_model_is_named_in_the_error(load_example, cities):
    (cities / "rome.pickle").unlink()
    with pytest.raises(UnknownKeyError, match="'rome'"):
        load_example("model_per_key").run(make_arguments(cities))


def test_pattern_without_models_raises_an_error(load_example, cities):
    with pytest.raises(FileNotFoundError, match=r"\*\.onnx"):
        load_example("model_per_key").run(make_arguments(cities, models=cities / "*.onnx"))
