"""The sample models reach the accuracy that their docstrings state, on data that they weren't trained on."""

import pickle
from pathlib import Path

import joblib
import numpy as np
import torch
from torchvision.models import shufflenet_v2_x0_5

from runinference import samples


def accuracy(predictions):
    _, labels = samples.held_out_digits()
    return np.mean(np.asarray(predictions) == labels)


def test_the_classifier_reads_held_out_digits():
    images, _ = samples.held_out_digits()
    model = pickle.loads(Path(samples.digits_classifier()).read_bytes())
    assert accuracy(model.predict(images)) >= 0.92


def test_the_forest_is_more_accurate_and_makes_other_errors():
    images, _ = samples.held_out_digits()
    classifier = pickle.loads(Path(samples.digits_classifier()).read_bytes())
    forest = joblib.load(samples.digits_forest())
    assert accuracy(forest.predict(images)) >= 0.94
    assert np.mean(forest.predict(images) != classifier.predict(images)) > 0.02


def test_the_shufflenet_weights_fit_the_torchvision_model():
    images, _ = samples.held_out_digits()
    weights = torch.load(samples.digits_shufflenet(), weights_only=True)
    model = shufflenet_v2_x0_5(num_classes=10).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        assert accuracy(model(samples.digit_tensors(images)).argmax(1)) >= 0.92


def test_the_regressor_finds_columns_by_name():
    patients, progression = samples.held_out_diabetes()
    model = pickle.loads(Path(samples.diabetes_regressor()).read_bytes())
    assert model.score(patients, progression) >= 0.45
    assert model.score(patients[patients.columns[::-1]], progression) >= 0.45


def test_all_data_is_either_training_data_or_held_out():
    from sklearn.datasets import load_diabetes, load_digits

    images, labels = samples.held_out_digits()
    patients, progression = samples.held_out_diabetes()
    assert images.shape == (797, 64)
    assert labels.shape == (797,)
    assert patients.shape == (142, 10)
    assert list(patients.index) == list(progression.index) == list(range(300, 442))
    assert len(load_digits().data) == 1_000 + len(images)
    assert len(load_diabetes().data) == 300 + len(patients)
    train = {row.tobytes() for row in load_digits().data[:1_000]}
    assert not train & {row.tobytes() for row in images}


def test_converts_images_to_tensors():
    images, _ = samples.held_out_digits()
    tensors = samples.digit_tensors(images[:5])
    assert tensors.shape == (5, 3, 64, 64)
    assert tensors.dtype == torch.float32
    assert 0 <= tensors.min() < tensors.max() <= 1
