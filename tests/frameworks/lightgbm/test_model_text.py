"""Damaged LightGBM files raise an error instead of crashing the process, and valid files load."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
from sklearn.datasets import load_iris

from runinference.errors import ModelLoadError
from runinference.lightgbm_inference import LightGBMModelHandlerNumpy

ROWS, LABELS = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def model_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.txt"
    model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(ROWS, LABELS)
    model.booster_.save_model(path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.97])
def test_rejects_a_truncated_file_without_crashing(model_text, tmp_path, share):
    (tmp_path / "half.txt").write_bytes(model_text[: int(share * len(model_text))])
    with pytest.raises(ModelLoadError, match=r"half\.txt.* is truncated"):
        LightGBMModelHandlerNumpy(str(tmp_path / "half.txt")).predict(ROWS)


@pytest.mark.parametrize(
    ("old", "new", "defect"),
    [
        (
            b"left_child=",
            b"left_child=9 ",
            "the sizes of its trees differ from those in its header",
        ),
        (b"tree_sizes=", b"no_sizes=", "left_child has"),
        (b"leaf_value=", b"leaf_vxlue=", "in tree 0, leaf_value is missing"),
        (b"threshold=", b"threshold ", "there is a line 'threshold "),
        (b"leaf_value=-0", b"leaf_value=-x", "leaf_value does not hold numbers"),
        (b"left_child=1", b"left_child=0", "left_child and right_child do not form a tree"),
    ],
    ids=["longer", "without sizes", "renamed", "no field", "no number", "no tree"],
)
def test_rejects_a_damaged_tree_without_crashing(model_text, tmp_path, old, new, defect):
    damaged = model_text.replace(old, new, 1)
    assert damaged != model_text
    if b"no_sizes" in new:
        damaged = damaged.replace(b"left_child=", b"left_child=9 ", 1)
    (tmp_path / "odd.txt").write_bytes(damaged)
    with pytest.raises(ModelLoadError, match=rf"odd\.txt.* is damaged: .*{defect}"):
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
def test_accepts_valid_models_of_every_kind(tmp_path, options, labels):
    rows = np.round(ROWS)
    model = lightgbm.LGBMRegressor(n_estimators=3, n_jobs=1, verbose=-1, **options)
    booster = model.fit(rows, labels, categorical_feature=[3]).booster_
    booster.save_model(tmp_path / "model.txt")
    results = LightGBMModelHandlerNumpy(str(tmp_path / "model.txt")).predict(rows)
    np.testing.assert_array_equal([r.inference for r in results], booster.predict(rows))


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04}", b'{"name": "tree"}'])
def test_rejects_files_that_are_not_models(tmp_path, content):
    (tmp_path / "junk").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"not a LightGBM model: .* booster\.save_model"):
        LightGBMModelHandlerNumpy(str(tmp_path / "junk")).predict(ROWS)
