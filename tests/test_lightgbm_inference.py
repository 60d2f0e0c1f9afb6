"""LightGBM models, from text files, on arrays, frames and sparse matrices."""

from __future__ import annotations

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
from runinference.errors import BatchShapeError, ModelLoadError, ModelNotFoundError
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
    """A model of each kind of data, by the path of its file."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "arrays": classifier(),
        "frames": classifier(FRAME),
        "sparse": classifier(SPARSE),
        "backwards": classifier(labels=LABELS[::-1]),
    }
    for name, model in made.items():
        model.save_model(folder / f"{name}.txt")
    return {str(folder / f"{name}.txt"): model for name, model in made.items()}


def pick(models, name):
    return next((path, model) for path, model in models.items() if path.endswith(f"{name}.txt"))


def test_a_pipeline_says_what_the_model_says(models):
    path, model = pick(models, "arrays")
    results = run(list(ROWS), RunInference(LightGBMModelHandlerNumpy(path)))
    found = {result.example.tobytes(): result.inference for result in results}
    assert len(results) == len(ROWS)
    assert {result.model_id for result in results} == {path}
    expected = model.predict(ROWS)
    np.testing.assert_array_equal([found[row.tobytes()] for row in ROWS], expected)


def test_an_example_may_be_a_table_and_gets_a_prediction_for_each_row(models):
    path, model = pick(models, "arrays")
    [three, one] = LightGBMModelHandlerNumpy(path).predict([ROWS[:3], ROWS[0].tolist()])
    np.testing.assert_array_equal(three.inference, model.predict(ROWS[:3]))
    assert one.inference.shape == (3,)
    assert one.inference.base is None


def test_frames_and_sparse_matrices_are_joined(models):
    path, model = pick(models, "frames")
    frames = [FRAME.iloc[[i]] for i in range(9)]
    found = [r.inference[0] for r in LightGBMModelHandlerPandas(path).predict(frames)]
    np.testing.assert_array_equal(found, model.predict(FRAME.iloc[:9]))
    path, model = pick(models, "sparse")
    handler = LightGBMModelHandlerSciPy(path, min_batch_size=3)
    found = [r.inference for r in handler.predict([SPARSE[:2], SPARSE[2:5], SPARSE[5]])]
    np.testing.assert_array_equal(np.concatenate(found), model.predict(SPARSE[:6]))
    assert handler.get_num_bytes([SPARSE]) < SPARSE.toarray().nbytes * 2


def test_the_model_is_called_once_a_batch_with_the_inference_args(models, monkeypatch):
    path, _ = pick(models, "arrays")
    handler = LightGBMModelHandlerNumpy(path)
    model = handler.load_model()
    calls, predict = [], model.predict

    def watched(table, **options):
        calls.append((table.shape, options))
        return predict(table, **options)

    monkeypatch.setattr(model, "predict", watched)
    assert len(handler.run_inference(list(ROWS), model, {"raw_score": True})) == 150
    assert calls == [((150, 4), {"raw_score": True})]


def test_inference_fn_calls_the_model_itself_and_its_results_are_named(models):
    path, _ = pick(models, "arrays")

    def leaves(batch, model, inference_args):
        return list(model.predict(np.stack(batch), pred_leaf=True))

    handler = LightGBMModelHandlerNumpy(path, inference_fn=leaves)
    assert handler.predict(ROWS[:1])[0].shape == (15,)


def test_a_new_model_takes_over(models):
    old, new = pick(models, "arrays")[0], pick(models, "backwards")[0]
    handler = LightGBMModelHandlerNumpy(old)
    results = run_with_model_update(OURS, handler, new, [ROWS[0], ROWS[149]])
    assert sorted((r.inference.argmax(), r.model_id) for r in results) == [(0, new), (2, new)]


def test_a_wrong_number_of_features_is_named(models):
    path, _ = pick(models, "arrays")
    with pytest.raises(BatchShapeError, match="Element 0 .* has 3 features, .* trained with 4"):
        LightGBMModelHandlerNumpy(path).predict(ROWS[:, :3])


def test_other_columns_are_named(models):
    path, _ = pick(models, "frames")
    handler = LightGBMModelHandlerPandas(path)
    with pytest.raises(BatchShapeError, match="missing: petal_length; unknown to the model: size"):
        handler.predict([FRAME[:1].rename(columns={"petal length": "size"})])
    with pytest.raises(BatchShapeError, match="the same in another order"):
        handler.predict([FRAME[:1][FRAME.columns[::-1]]])


def test_a_model_of_arrays_takes_frames_whatever_their_columns(models):
    path, model = pick(models, "arrays")
    [result] = LightGBMModelHandlerPandas(path).predict([FRAME[:2]])
    np.testing.assert_array_equal(result.inference, model.predict(ROWS[:2]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.97])
def test_a_truncated_file_is_named_and_does_not_end_the_process(models, tmp_path, share):
    path, _ = pick(models, "arrays")
    with open(path, "rb") as file:
        whole = file.read()
    (tmp_path / "half.txt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelLoadError, match=r"half\.txt.* is truncated"):
        LightGBMModelHandlerNumpy(str(tmp_path / "half.txt")).predict(ROWS)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"left_child=", b"left_child=9 ", "other sizes than its header says"),
        (b"tree_sizes=", b"no_sizes=", "left_child has"),
        (b"leaf_value=", b"leaf_vxlue=", "in tree 0, leaf_value is missing"),
        (b"threshold=", b"threshold ", "there is a line 'threshold "),
        (b"leaf_value=-0", b"leaf_value=-x", "leaf_value does not hold numbers"),
        (b"left_child=1", b"left_child=0", "left_child and right_child are no tree"),
    ],
    ids=["longer", "without sizes", "renamed", "no field", "no number", "no tree"],
)
def test_a_file_damaged_inside_a_tree_is_named_and_does_not_end_the_process(
    models, tmp_path, old, new, why
):
    path, _ = pick(models, "arrays")
    with open(path, "rb") as file:
        whole = file.read()
    damaged = whole.replace(old, new, 1)
    assert damaged != whole
    if b"no_sizes" in new:
        damaged = damaged.replace(b"left_child=", b"left_child=9 ", 1)
    (tmp_path / "odd.txt").write_bytes(damaged)
    with pytest.raises(ModelLoadError, match=rf"odd\.txt.* is damaged: .*{why}"):
        LightGBMModelHandlerNumpy(str(tmp_path / "odd.txt")).predict(ROWS)


@pytest.mark.parametrize(
    "options",
    [
        {"linear_tree": True},
        {"boosting_type": "dart"},
        {"num_leaves": 2},
        {"min_data_per_group": 1, "cat_smooth": 0},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("labels", [LABELS, np.ones(len(LABELS))], ids=["trees", "one leaf"])
def test_models_of_every_kind_are_whole(tmp_path, options, labels):
    rows = np.round(ROWS)
    model = lightgbm.LGBMRegressor(n_estimators=3, n_jobs=1, verbose=-1, **options)
    booster = model.fit(rows, labels, categorical_feature=[3]).booster_
    booster.save_model(tmp_path / "model.txt")
    results = LightGBMModelHandlerNumpy(str(tmp_path / "model.txt")).predict(rows)
    np.testing.assert_array_equal([r.inference for r in results], booster.predict(rows))


def test_threads_share_a_call_which_gives_each_its_own(models):
    path, model = pick(models, "arrays")
    handler = LightGBMModelHandlerNumpy(path)
    assert RunInference(handler)._config().session.dynamic_batching
    together = handler.run_inference(list(ROWS), handler.load_model())
    alone = [model.predict(row[None])[0] for row in ROWS]
    np.testing.assert_array_equal([result.inference for result in together], alone)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04}", b'{"name": "tree"}'])
def test_junk_in_place_of_a_model_is_named(tmp_path, content):
    (tmp_path / "junk").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"no model of LightGBM's: .* booster\.save_model"):
        LightGBMModelHandlerNumpy(str(tmp_path / "junk")).predict(ROWS)


def test_what_lightgbm_refuses_is_told_in_its_words(tmp_path):
    (tmp_path / "odd.txt").write_text("tree\nversion=v4\nend of trees\n")
    with pytest.raises(ModelLoadError, match="cannot be loaded by LightGBM .*number of classes"):
        LightGBMModelHandlerNumpy(str(tmp_path / "odd.txt")).predict(ROWS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no\.txt"):
        LightGBMModelHandlerNumpy(str(tmp_path / "no.txt")).predict(ROWS)


def test_without_lightgbm_the_error_names_the_extra():
    program = "import sys; sys.modules['lightgbm'] = None; import runinference.lightgbm_inference"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[lightgbm]"' in ended.stderr


def test_the_bytes_of_a_batch_are_those_of_its_data():
    handler = LightGBMModelHandlerNumpy("m.txt")
    assert handler.get_num_bytes(list(ROWS)) == ROWS.nbytes
    assert handler.get_metrics_namespace() == "BeamML_LightGBM"
