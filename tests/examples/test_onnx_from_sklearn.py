"""Tests of examples/onnx_from_sklearn.py."""

import csv
import pickle
import re

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier


def read(path):
    with open(path, newline="") as file:
        return sorted(csv.DictReader(file), key=lambda line: int(line["row"]))


def test_both_models_agree_on_all_wines(run_example):
    printed = run_example("onnx_from_sklearn")
    lines = read(re.search(r"Answers: (\S+\.csv)", printed)[1])
    assert [int(line["row"]) for line in lines] == list(range(45))
    assert all(line["label"] == line["original_label"] for line in lines)
    assert {line["label"] for line in lines} == {"0", "1", "2"}
    assert all(float(line["difference"]) < 1e-5 for line in lines)
    assert re.search(
        r"45 of 45 labels are the same; probabilities differ by \S+e-\d+ at most", printed
    )


def test_accepts_two_models_and_finds_differences(load_example, tmp_path, capsys):
    rows, labels = load_iris(return_X_y=True)
    original = DecisionTreeClassifier(random_state=0).fit(rows, labels)
    other = DecisionTreeClassifier(random_state=0, max_depth=1).fit(rows, labels)
    (tmp_path / "original.pickle").write_bytes(pickle.dumps(original))
    exported = to_onnx(other, rows[:1].astype(np.float32), options={"zipmap": False})
    (tmp_path / "other.onnx").write_bytes(exported.SerializeToString())
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,c,d", comments="")
    load_example("onnx_from_sklearn").run(
        [
            *("--input", str(tmp_path / "rows.csv")),
            *("--output", str(tmp_path / "out.csv")),
            *("--model_path", str(tmp_path / "other.onnx")),
            *("--original_path", str(tmp_path / "original.pickle")),
        ]
    )
    lines = read(tmp_path / "out.csv")
    same = [line["label"] == line["original_label"] for line in lines]
    expected = original.predict(rows) == other.predict(rows)
    assert same == expected.tolist()
    assert not all(same)
    assert f"{sum(same)} of 150 labels are the same" in capsys.readouterr().out


def test_one_model_without_the_other_raises_an_error(load_example, capsys):
    with pytest.raises(SystemExit):
        load_example("onnx_from_sklearn").run(["--model_path", "m.onnx"])
    assert "--original_path together" in capsys.readouterr().err
