"""Tests of examples/image_classification.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from apache_beam.io.filesystem import BeamIOError
from PIL import Image
from torchvision.models import mobilenet_v3_small, shufflenet_v2_x0_5

from runinference import samples
from runinference.errors import ModelLoadError, ModelNotFoundError


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_classifies_digits_by_default(run_example):
    printed = run_example("image_classification")
    path = re.search(r"Predictions: (\S+\.jsonl)", printed)[1]
    by_number = {
        int(re.search(r"(\d+)-shows", line["image"])[1]): line for line in read_lines(Path(path))
    }
    _, labels = samples.held_out_digits()
    assert sorted(by_number) == list(range(len(labels)))
    predicted = np.array([by_number[number]["label"] for number in range(len(labels))])
    assert np.mean(predicted == labels) >= 0.92
    assert all(0.1 <= line["probability"] <= 1 for line in by_number.values())
    assert all(f"shows-{labels[n]}." in line["image"] for n, line in by_number.items())

    model = shufflenet_v2_x0_5(num_classes=10).eval()
    model.load_state_dict(torch.load(samples.digits_shufflenet()))
    with torch.inference_mode():
        expected = model(samples.digit_tensors(samples.held_out_digits()[0])).argmax(1).numpy()
    # PNG files round the pixel values, so a prediction with a small margin may differ.
    assert np.mean(predicted == expected) >= 0.995


def test_accepts_images_of_any_size_and_another_network(load_example, tmp_path):
    from sklearn.datasets import load_sample_images

    for number, photo in enumerate(load_sample_images().images):
        Image.fromarray(photo).resize((300 + 40 * number, 200)).save(tmp_path / f"{number}.jpg")
    torch.manual_seed(0)
    model = mobilenet_v3_small(num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    example = load_example("image_classification")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    example.run(
        [
            *("--input", str(tmp_path / "*.jpg")),
            *("--output", str(tmp_path / "labels")),
            *("--model_state_dict_path", str(tmp_path / "weights.pt")),
            *("--model_arch", "mobilenet_v3_small"),
            *("--num_classes", "3"),
            *("--image_size", "96"),
            *("--mean", *map(str, mean)),
            *("--std", *map(str, std)),
            "--job_name=passed-through-to-beam",
        ]
    )
    lines = read_lines(tmp_path / "labels.jsonl")
    assert {line["image"] for line in lines} == {str(tmp_path / f"{n}.jpg") for n in range(2)}
    for line in lines:
        pixels = np.asarray(Image.open(line["image"]), dtype=np.float32) / 255
        image = torch.from_numpy((pixels - mean) / std).float().permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(image, (96, 96), mode="bilinear", antialias=True)
        with torch.inference_mode():
            probability, label = model(small)[0].softmax(0).max(0)
        assert line["label"] == int(label)
        assert line["probability"] == pytest.approx(float(probability), abs=1e-3)


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pt")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pt"):
        load_example("image_classification").run(["--model_state_dict_path", missing])


def test_weights_of_another_network_raise_an_error(load_example):
    with pytest.raises(ModelLoadError):
        load_example("image_classification").run(
            [
                "--model_state_dict_path",
                samples.digits_shufflenet(),
                "--model_arch",
                "squeezenet1_1",
            ]
        )


def test_pattern_without_images_raises_an_error(load_example, tmp_path):
    with pytest.raises(BeamIOError, match="Empty match"):
        load_example("image_classification").run(["--input", str(tmp_path / "*.png")])
