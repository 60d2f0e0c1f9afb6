"""Train the tabular and image sample models, once, and hold out test data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runinference.extras import need
from runinference.samples.cache import keeper

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    import torch

_TRAINING_DIGITS = 1_000
_TRAINING_PATIENTS = 300


def digits_classifier() -> str:
    """The path of a logistic regression that reads handwritten digits, as a pickle file.

    It takes rows of 64 pixels, as [held_out_digits][runinference.samples.held_out_digits] gives
    them, and is right about 93 times in 100.
    """
    return _kept("digits_classifier", ".pickle", "sklearn", _train_classifier)


def digits_forest() -> str:
    """The path of a forest of randomized trees for the same task, as a joblib file.

    It takes what ``digits_classifier`` takes, and is right about 95 times in 100.
    """
    return _kept("digits_forest", ".joblib", "sklearn", _train_forest)


def digits_shufflenet() -> str:
    """The path of PyTorch weights (a ``state_dict``) for torchvision's ``shufflenet_v2_x0_5``.

    It takes pictures as [digit_tensors][runinference.samples.digit_tensors] makes them, and is right
    about 94 times in 100. Training takes about 20 seconds. Load the weights with
    ``model_class=torchvision.models.shufflenet_v2_x0_5`` and ``model_params={"num_classes": 10}``.
    """
    return _kept("digits_shufflenet", ".pt", "torch", _train_shufflenet)


def diabetes_regressor() -> str:
    """The path of a pipeline that foresees how diabetes progresses, as a pickle file.

    It takes data frames with the columns that
    [held_out_diabetes][runinference.samples.held_out_diabetes] has, found by name.
    """
    return _kept("diabetes_regressor", ".pickle", "sklearn", _train_regressor)


def held_out_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Images that no model here was trained on, and the digits that they show.

    Returns:
        797 images, each a row of 8 x 8 = 64 pixels from 0 (paper) to 16 (ink); and 797 labels.
    """
    images, labels = _digits()
    return images[_TRAINING_DIGITS:], labels[_TRAINING_DIGITS:]


def held_out_diabetes() -> tuple[pd.DataFrame, pd.Series[float]]:
    """Patients that ``diabetes_regressor`` was not trained on, and their disease's progression.

    Returns:
        142 rows of 10 columns (age, sex, bmi, bp, s1 to s6) in their own units; and 142 measures of
        the progression in a year.
    """
    patients, progression = _diabetes()
    return patients[_TRAINING_PATIENTS:], progression[_TRAINING_PATIENTS:]


def digit_tensors(images: npt.NDArray[Any]) -> torch.Tensor:
    """Rows of 64 pixels as the pictures that a torchvision model takes.

    Args:
        images: Of shape (n, 64), from 0 to 16, as ``held_out_digits`` gives them.

    Returns:
        A tensor of shape (n, 3, 64, 64), float32, from 0 to 1.
    """
    need("torch", extra="torch")
    import torch

    small = torch.from_numpy(np.asarray(images, dtype=np.float32) / 16).reshape(-1, 1, 8, 8)
    large = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
    return large.repeat(1, 3, 1, 1)


def _digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    images, labels = need("sklearn.datasets", extra="sklearn").load_digits(return_X_y=True)
    return images, labels


def _diabetes() -> tuple[pd.DataFrame, pd.Series[float]]:
    need("pandas", extra="sklearn")
    datasets = need("sklearn.datasets", extra="sklearn")
    patients, progression = datasets.load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    return patients, progression


def _train_classifier(path: Path) -> None:
    import pickle

    from sklearn.linear_model import LogisticRegression

    images, labels = _digits()
    model = LogisticRegression(max_iter=2_000)
    model.fit(images[:_TRAINING_DIGITS], labels[:_TRAINING_DIGITS])
    path.write_bytes(pickle.dumps(model))


def _train_forest(path: Path) -> None:
    import joblib
    from sklearn.ensemble import ExtraTreesClassifier

    images, labels = _digits()
    model = ExtraTreesClassifier(n_estimators=100, random_state=0)
    model.fit(images[:_TRAINING_DIGITS], labels[:_TRAINING_DIGITS])
    joblib.dump(model, path)


def _train_regressor(path: Path) -> None:
    import pickle

    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    patients, progression = _diabetes()
    columns = make_column_transformer(
        (OneHotEncoder(drop="if_binary"), ["sex"]), remainder=StandardScaler()
    )
    model = make_pipeline(columns, Ridge())
    model.fit(patients[:_TRAINING_PATIENTS], progression[:_TRAINING_PATIENTS])
    path.write_bytes(pickle.dumps(model))


def _train_shufflenet(path: Path) -> None:
    import torch
    from torchvision.models import shufflenet_v2_x0_5

    images, labels = _digits()
    pictures = digit_tensors(images[:_TRAINING_DIGITS])
    targets = torch.from_numpy(labels[:_TRAINING_DIGITS])
    epochs, batch_size = 12, 50
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # The order of sums depends on it, and so would the weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shufflenet_v2_x0_5(num_classes=10)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.01, total_steps=epochs * _TRAINING_DIGITS // batch_size
        )
        for _ in range(epochs):
            for batch in torch.randperm(_TRAINING_DIGITS).reshape(-1, batch_size):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(pictures[batch]), targets[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    torch.set_num_threads(threads)
    torch.save(model.state_dict(), path)


_kept = keeper(__file__)
