"""LightGBM handlers load text files, and predict on arrays, DataFrames and sparse matrices."""

from __future__ import annotations

import datetime
import subprocess
import sys

import lightgbm
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.datasets import load_iris

from common import run
from defects.packages import OURS
from model_updates import run_with_model_update
from runinference import RunInference
from runinference.errors import BatchShapeError, ElementError, ModelLoadError, ModelNotFoundError
from runinference.lightgbm_inference import (
    LightGBMModelHandlerNumpy,
    LightGBMModelHandlerPandas,
    LightGBMModelHandlerSciPy,
)

ROWS, LABELS = load_iris(return_X_y=True)
FRAME = pd.DataFrame(ROWS, columns=["length", "width", "petal length", "petal width"])
SPARSE = scipy.sparse.csr_matrix(np.where(ROWS < 1, 0, ROWS))


def classifier(data=ROWS, labels=LABELS):
    model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1)
    return model.fit(data, labels).booster_


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Save a model for each type of data. Return the boosters by path."""
    folder = tmp_path_factory.mktemp("models")
    boosters = {
        "arrays": classifier(),
        "frames": classifier(FRAME),
        "sparse": classifier(SPARSE),
        "backwards": classifier(labels=LABELS[::-1]),
    }
    for name, model in boosters.items():
        model.save_model(folder / f"{name}.txt")
    return {str(folder / f"{name}.txt"): model for name, model in boosters.items()}


def pick(models, name):
    return next((path, model) for path, model in models.items() if path.endswith(f"{name}.txt"))


def test_pipeline_results_are_the_predictions_of_the_model(models):
    path, model = pick(models, "arrays")
    results = run(list(ROWS), RunInference(LightGBMModelHandlerNumpy(path)))
    found = {result.example.tobytes(): result.inference for result in results}
    assert len(results) == len(ROWS)
    assert {result.model_id for result in results} == {path}
    expected = model.predict(ROWS)
    np.testing.assert_array_equal([found[row.tobytes()] for row in ROWS], expected)


def test_predicts_each_row_of_a_table(models):
    path, model = pick(models, "arrays")
    [three, one] = LightGBMModelHandlerNumpy(path).predict([ROWS[:3], ROWS[0].tolist()])
    np.testing.assert_array_equal(three.inference, model.predict(ROWS[:3]))
    assert one.inference.shape == (3,)
    assert one.inference.base is None


def test_joins_data_frames_and_sparse_matrices(models):
    path, model = pick(models, "frames")
    frames = [FRAME.iloc[[i]] for i in range(9)]
    found = [r.inference[0] for r in LightGBMModelHandlerPandas(path).predict(frames)]
    np.testing.assert_array_equal(found, model.predict(FRAME.iloc[:9]))
    path, model = pick(models, "sparse")
    handler = LightGBMModelHandlerSciPy(path, min_batch_size=3)
    found = [r.inference for r in handler.predict([SPARSE[:2], SPARSE[2:5], SPARSE[5]])]
    np.testing.assert_array_equal(np.concatenate(found), model.predict(SPARSE[:6]))
    assert handler.get_num_bytes([SPARSE]) < SPARSE.toarray().nbytes * 2


def test_calls_the_model_once_per_batch_with_the_inference_args(models, monkeypatch):
    path, _ = pick(models, "arrays")
    handler = LightGBMModelHandlerNumpy(path)
    model = handler.load_model()
    calls, predict = [], model.predict

    def record(table, **options):
        calls.append((table.shape, options))
        return predict(table, **options)

    monkeypatch.setattr(model, "predict", record)
    assert len(handler.run_inference(list(ROWS), model, {"raw_score": True})) == 150
    assert calls == [((150, 4), {"raw_score": True})]


def test_inference_fn_calls_the_model(models):
    path, _ = pick(models, "arrays")

    def leaves(batch, model, inference_args):
        return list(model.predict(np.stack(batch), pred_leaf=True))

    handler = LightGBMModelHandlerNumpy(path, inference_fn=leaves)
    assert handler.predict(ROWS[:1])[0].shape == (15,)


def test_a_new_model_replaces_the_old_one(models):
    old, new = pick(models, "arrays")[0], pick(models, "backwards")[0]
    handler = LightGBMModelHandlerNumpy(old)
    results = run_with_model_update(OURS, handler, new, [ROWS[0], ROWS[149]])
    assert sorted((r.inference.argmax(), r.model_id) for r in results) == [(0, new), (2, new)]


def test_rejects_a_wrong_number_of_features(models):
    path, _ = pick(models, "arrays")
    with pytest.raises(BatchShapeError, match="Element 0 .* has 3 features, .* trained with 4"):
        LightGBMModelHandlerNumpy(path).predict(ROWS[:, :3])


def test_names_missing_and_unknown_columns(models):
    path, _ = pick(models, "frames")
    handler = LightGBMModelHandlerPandas(path)
    with pytest.raises(BatchShapeError, match="missing: petal_length; unknown to the model: size"):
        handler.predict([FRAME[:1].rename(columns={"petal length": "size"})])
    with pytest.raises(BatchShapeError, match="the same in another order"):
        handler.predict([FRAME[:1][FRAME.columns[::-1]]])


def test_a_model_trained_on_arrays_accepts_any_columns(models):
    path, model = pick(models, "arrays")
    [result] = LightGBMModelHandlerPandas(path).predict([FRAME[:2]])
    np.testing.assert_array_equal(result.inference, model.predict(ROWS[:2]))


def test_threads_can_share_a_call(models):
    path, model = pick(models, "arrays")
    handler = LightGBMModelHandlerNumpy(path)
    assert RunInference(handler)._config().session.dynamic_batching
    together = handler.run_inference(list(ROWS), handler.load_model())
    alone = [model.predict(row[None])[0] for row in ROWS]
    np.testing.assert_array_equal([result.inference for result in together], alone)


def test_shows_the_message_of_lightgbm_for_a_file_that_it_rejects(tmp_path):
    (tmp_path / "odd.txt").write_text("tree\nversion=v4\nend of trees\n")
    with pytest.raises(ModelLoadError, match="cannot be loaded by LightGBM .*number of classes"):
        LightGBMModelHandlerNumpy(str(tmp_path / "odd.txt")).predict(ROWS)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no\.txt"):
        LightGBMModelHandlerNumpy(str(tmp_path / "no.txt")).predict(ROWS)


def test_names_the_extra_if_lightgbm_is_missing():
    program = "import sys; sys.modules['lightgbm'] = None; import runinference.lightgbm_inference"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[lightgbm]"' in ended.stderr


def test_measures_the_bytes_of_a_batch_and_reports_a_metrics_namespace():
    handler = LightGBMModelHandlerNumpy("m.txt")
    assert handler.get_num_bytes(list(ROWS)) == ROWS.nbytes
    assert handler.get_metrics_namespace() == "BeamML_LightGBM"


def test_contributions_of_sparse_rows_are_those_of_arrays(models):
    path, model = pick(models, "arrays")
    expected = model.predict(ROWS[:3], pred_contrib=True)
    for size in (1, 2, 3):
        handler = LightGBMModelHandlerSciPy(path, min_batch_size=size, max_batch_size=size)
        rows = [scipy.sparse.csr_matrix(ROWS[[i]]) for i in range(3)]
        found = [result.inference for result in handler.predict(rows, {"pred_contrib": True})]
        np.testing.assert_allclose([one.toarray()[0] for one in found], expected)


def test_integers_reach_the_model_unchanged(tmp_path):
    """LightGBM converts integers of arrays to float32, and rejects those of sparse matrices."""
    numbers = np.arange(2**24 - 100, 2**24 + 100)
    options = {"n_estimators": 30, "min_child_samples": 1, "min_data_in_bin": 1, "max_bin": 300}
    model = lightgbm.LGBMRegressor(**options, verbose=-1, n_jobs=1).fit(numbers[:, None], numbers)
    model.booster_.save_model(tmp_path / "m.txt")
    expected = model.booster_.predict(numbers[:, None].astype(float))
    assert expected[101] != expected[102]
    path = str(tmp_path / "m.txt")
    for handler, make in (
        (LightGBMModelHandlerNumpy(path), np.array),
        (LightGBMModelHandlerNumpy(path), list),
        (LightGBMModelHandlerPandas(path), lambda row: pd.DataFrame([row])),
        (LightGBMModelHandlerSciPy(path), lambda row: scipy.sparse.csr_matrix([row])),
    ):
        found = [r.inference for r in handler.predict([make([n]) for n in numbers.tolist()])]
        np.testing.assert_array_equal(np.ravel(found), expected)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (["red", 1, 2, 3], "rejects the batch, a table of object.*could not convert"),
        (np.array([1j, 1, 2, 3]), "hold complex128"),
        ([10**400, 1, 2, 3], "not real numbers .*int too large"),
        ([datetime.date(2026, 1, 1), 1, 2, 3], "not real numbers .*date"),
        (pd.DataFrame([[pd.Timestamp("2026"), 1, 2, 3.5]]), "rejects the batch.*0: datetime64"),
        (pd.DataFrame([["red", 1, 2, 3]]), r"lambda frame: frame\.astype\({0: 'category'}\)"),
    ],
)
def test_values_that_the_model_rejects_raise_an_error_with_a_hint(models, example, message):
    path, _ = pick(models, "arrays")
    with pytest.raises(ElementError, match=message):
        LightGBMModelHandlerNumpy(path).predict([example])
