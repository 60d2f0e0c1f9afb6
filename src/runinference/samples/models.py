"""Train the tabular and image sample models, once, and hold out test data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runinference.extras import need
from runinference.samples import training
from runinference.samples.cache import get_or_train

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    import torch

_SOURCES = (__file__, training.__file__)
_TRAINING_DIGITS = 1_000
_TRAINING_PATIENTS = 300


def digits_classifier() -> str:
    """Return the path of a pickle file with a logistic regression that classifies handwritten digits.

    It takes rows of 64 pixels, like those of [held_out_digits][runinference.samples.held_out_digits]. Its accuracy
    on them is about 93%.
    """
    return get_or_train("digits_classifier", ".pickle", "sklearn", _train_classifier, _SOURCES)


def digits_forest() -> str:
    """Return the path of a joblib file with extremely randomized trees that classify handwritten digits.

    It takes rows of 64 pixels, like those of [held_out_digits][runinference.samples.held_out_digits]. Its accuracy
    on them is about 95%.
    """
    return get_or_train("digits_forest", ".joblib", "sklearn", _train_forest, _SOURCES)


def digits_shufflenet() -> str:
    """Return the path of PyTorch weights (a ``state_dict``) for torchvision's ``shufflenet_v2_x0_5``.

    The model takes images made by [digit_tensors][runinference.samples.digit_tensors]. Its accuracy on the
    held-out digits is about 94%. The first call trains the model, which takes about 20 seconds. Load the weights
    with ``model_class=torchvision.models.shufflenet_v2_x0_5`` and ``model_params={"num_classes": 10}``.
    """
    return get_or_train("digits_shufflenet", ".pt", "torch", _train_shufflenet, _SOURCES)


def diabetes_regressor() -> str:
    """Return the path of a pickle file with a pipeline that predicts the progression of diabetes.

    It takes DataFrames with the columns of [held_out_diabetes][runinference.samples.held_out_diabetes], in any
    order.
    """
    return get_or_train("diabetes_regressor", ".pickle", "sklearn", _train_regressor, _SOURCES)


def held_out_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return images of handwritten digits that the sample models weren't trained on, and their labels.

    Returns:
        A float64 array of images of shape ``(797, 64)``, each 8 x 8 pixels from 0 (paper) to 16 (ink), and an
        int64 array of labels of shape ``(797,)``, from 0 to 9.
    """
    images, labels = _load_digits()
    return images[_TRAINING_DIGITS:], labels[_TRAINING_DIGITS:]


def held_out_diabetes() -> tuple[pd.DataFrame, pd.Series[float]]:
    """Return patients that ``diabetes_regressor`` wasn't trained on, and the progression of their disease.

    Returns:
        A DataFrame of 142 rows and 10 columns (age, sex, bmi, bp, s1 to s6), not normalized, and a series of 142
        measures of the progression after one year.
    """
    patients, progression = _load_diabetes()
    return patients[_TRAINING_PATIENTS:], progression[_TRAINING_PATIENTS:]


def digit_tensors(images: npt.NDArray[Any]) -> torch.Tensor:
    """Convert images of digits to the tensors that a torchvision model takes.

    Args:
        images: An array of shape ``(n, 64)`` with values from 0 to 16, like those of ``held_out_digits``.

    Returns:
        A float32 tensor of shape ``(n, 3, 64, 64)`` with values from 0 to 1.
    """
    need("torch", extra="torch")
    import torch

    small = torch.from_numpy(np.asarray(images, dtype=np.float32) / 16).reshape(-1, 1, 8, 8)
    large = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
    return large.repeat(1, 3, 1, 1)


def _load_digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    images, labels = need("sklearn.datasets", extra="sklearn").load_digits(return_X_y=True)
    return images, labels


def _load_diabetes() -> tuple[pd.DataFrame, pd.Series[float]]:
    need("pandas", extra="sklearn")
    datasets = need("sklearn.datasets", extra="sklearn")
    patients, progression = datasets.load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    return patients, progression


def _train_classifier(path: Path) -> None:
    import pickle

    from sklearn.linear_model import LogisticRegression

    images, labels = _load_digits()
    model = LogisticRegression(max_iter=2_000)
    model.fit(images[:_TRAINING_DIGITS], labels[:_TRAINING_DIGITS])
    path.write_bytes(pickle.dumps(model))


def _train_forest(path: Path) -> None:
    import joblib
    from sklearn.ensemble import ExtraTreesClassifier

    images, labels = _load_digits()
    model = ExtraTreesClassifier(n_estimators=100, random_state=0)
    model.fit(images[:_TRAINING_DIGITS], labels[:_TRAINING_DIGITS])
    joblib.dump(model, path)


def _train_regressor(path: Path) -> None:
    import pickle

    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    patients, progression = _load_diabetes()
    columns = make_column_transformer(
        (OneHotEncoder(drop="if_binary"), ["sex"]), remainder=StandardScaler()
    )
    model = make_pipeline(columns, Ridge())
    model.fit(patients[:_TRAINING_PATIENTS], progression[:_TRAINING_PATIENTS])
    path.write_bytes(pickle.dumps(model))


def _train_shufflenet(path: Path) -> None:
    import torch
    from torchvision.models import shufflenet_v2_x0_5

    images, labels = _load_digits()
    inputs = digit_tensors(images[:_TRAINING_DIGITS])
    targets = torch.from_numpy(labels[:_TRAINING_DIGITS])
    epochs, batch_size = 12, 50
    with training.reproducible():
        model = shufflenet_v2_x0_5(num_classes=10)
        losses = (
            torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            for _ in range(epochs)
            for batch in torch.randperm(_TRAINING_DIGITS).reshape(-1, batch_size)
        )
        training.fit(model, losses, epochs * _TRAINING_DIGITS // batch_size, max_lr=0.01)
    torch.save(model.state_dict(), path)
