"""Tests of examples/csv_to_parquet.py."""

import pickle

import pandas as pd
import pyarrow.parquet
import pytest
from sklearn.linear_model import LogisticRegression

from runinference.errors import OptionError


def test_writes_labels_and_probabilities_of_all_patients(load_example, tmp_path, capsys):
    example = load_example("csv_to_parquet")
    example.run(["--output", str(tmp_path / "predicted")])
    assert capsys.readouterr().out.split()[:4] == [
        "patient",
        "label",
        "probability_fast",
        "probability_slow",
    ]
    files = list(tmp_path.glob("predicted-*.parquet"))
    types = [str(kind) for kind in pyarrow.parquet.read_schema(files[0]).types]
    assert types == ["int64", "string", "double", "double"]
    found = pd.concat(map(pd.read_parquet, files)).sort_values("patient")
    patients, speed = example.read_patients()
    with open(example.train(str(tmp_path)), "rb") as file:
        model = pickle.load(file)
    expected = model.predict_proba(patients)
    assert found["patient"].tolist() == patients.index.tolist()
    assert found["probability_fast"].tolist() == pytest.approx(expected[:, 0].tolist())
    assert (found["label"].to_numpy() == speed.to_numpy()).mean() > 0.75


def test_accepts_a_file_a_model_and_columns_to_keep(load_example, tmp_path, capsys):
    table = pd.DataFrame({"id": ["a", "b"], "x": [0.0, 9.0], "y": [1.0, 1.0]})
    table.to_csv(tmp_path / "in.csv", index=False)
    model = LogisticRegression().fit(table[["x", "y"]], ["low", "high"])
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    options = ["--input", str(tmp_path / "in.csv"), "--model_path", str(tmp_path / "model.pickle")]
    example = load_example("csv_to_parquet")
    example.run([*options, "--keep", "id", "x", "--job_name=passed-through-to-beam"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["a", "0.0", "low"], ["b", "9.0", "high"]]
    with pytest.raises(OptionError, match="no column 'idd' .keep.* Did you mean 'id'"):
        example.run([*options, "--keep", "idd"])
