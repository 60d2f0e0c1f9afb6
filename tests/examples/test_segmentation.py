"""Tests of examples/segmentation.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from apache_beam.io.filesystem import BeamIOError
from PIL import Image
from torchvision.models import get_model

from runinference.errors import ModelLoadError, ModelNotFoundError


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_finds_digits_on_photographs_by_default(run_example, load_example):
    printed = run_example("segmentation")
    lines = read_lines(re.search(r"(\S+shares\.jsonl)", printed)[1])
    truth = [mask for _, mask in load_example("segmentation").held_out_scenes()]
    assert sorted(Path(line["image"]).stem for line in lines) == [
        f"scene-{number:02}" for number in range(len(truth))
    ]
    intersection = union = 0
    for line in lines:
        found = np.array(Image.open(line["mask"]))
        ink = truth[int(Path(line["mask"]).stem.removeprefix("scene-"))]
        intersection += (found & ink).sum()
        union += (found | ink).sum()
        assert line["shares"].get("1", 0) == pytest.approx(found.mean(), abs=1e-4)
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert intersection / union > 0.7, "intersection over union"


def test_accepts_images_of_any_size_and_a_torchvision_network(load_example, tmp_path):
    from sklearn.datasets import load_sample_images

    for number, photo in enumerate(load_sample_images().images):
        Image.fromarray(photo).resize((300 + 40 * number, 200)).save(tmp_path / f"{number}.jpg")
    torch.manual_seed(0)
    network = get_model("lraspp_mobilenet_v3_large", num_classes=3, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    load_example("segmentation").run(
        [
            *("--input", str(tmp_path / "*.jpg")),
            *("--output", str(tmp_path / "masks")),
            *("--model_state_dict_path", str(tmp_path / "weights.pt")),
            *("--model_arch", "lraspp_mobilenet_v3_large"),
            *("--num_classes", "3"),
            *("--image_size", "96"),
            "--job_name=passed-through-to-beam",
        ]
    )
    lines = read_lines(tmp_path / "masks" / "shares.jsonl")
    assert {line["image"] for line in lines} == {str(tmp_path / f"{n}.jpg") for n in range(2)}
    for line in lines:
        pixels = np.asarray(Image.open(line["image"]), dtype=np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(image, (96, 96), mode="bilinear", antialias=True)
        with torch.inference_mode():
            classes = network.eval()(small)["out"][0].argmax(0).numpy()
        found = np.array(Image.open(line["mask"]))
        assert found.shape == (96, 96)
        assert np.mean(found == classes) > 0.98


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pt")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pt"):
        load_example("segmentation").run(["--model_state_dict_path", missing])


def test_weights_of_another_network_raise_an_error(load_example, tmp_path):
    network = load_example("segmentation").make_network("small", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "five.pt")
    with pytest.raises(ModelLoadError):
        load_example("segmentation").run(["--model_state_dict_path", str(tmp_path / "five.pt")])


def test_pattern_without_images_raises_an_error(load_example, tmp_path):
    example = load_example("segmentation")
    torch.save(example.make_network("small", 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BeamIOError, match="Empty match"):
        example.run(
            [
                *("--input", str(tmp_path / "*.png")),
                *("--model_state_dict_path", str(tmp_path / "weights.pt")),
            ]
        )
