"""Segment images with a torchvision model.

    python examples/segmentation.py \\
        --input 'photos/*.jpg' --output masks --num_classes 21 --image_size 520 \\
        --model_arch lraspp_mobilenet_v3_large --model_state_dict_path lraspp.pth \\
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

The output has a mask per image and the share of pixels per class. Without arguments,
the example trains a small network and finds red digits on photographs.
"""

import argparse
import colorsys
import json
import os
import tempfile
from pathlib import PurePath

import apache_beam as beam
import numpy as np
import torch
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from runinference import KeyedModelHandler, RunInference, samples
from runinference.pytorch_inference import PytorchModelHandlerTensor
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation import LRASPP
from torchvision.transforms.v2 import functional


def run(argv=None):
    """Run the pipeline. Images are resized to one size, so that they can be batched."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or tempfile.mkdtemp(prefix="masks-")
    handler = PytorchModelHandlerTensor(
        state_dict_path=args.model_state_dict_path or train_small_network(),
        model_class=make_network,
        model_params={
            "name": args.model_arch,
            "num_classes": args.num_classes,
            "aux_loss": args.aux_loss,
        },
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Find"
            >> fileio.MatchFiles(
                args.input or write_scenes(),
                fileio.EmptyMatchTreatment.DISALLOW,
            )
            | "Open" >> fileio.ReadMatches()
            | "Decode" >> beam.Map(read_image, args.image_size, args.mean, args.std)
            | "Segment" >> RunInference(KeyedModelHandler(handler))
            | "Write masks" >> beam.MapTuple(write_mask, output)
            | "Format" >> beam.Map(json.dumps)
            | "Write"
            >> beam.io.WriteToText(
                os.path.join(output, "shares"), ".jsonl", shard_name_template=""
            )
        )
    print(f"Masks: {output}/*.png, shares of the classes: {output}/shares.jsonl")


def read_image(file, size, mean, std):
    """Return the path of an image file and its pixels, a (3, size, size) tensor."""
    with file.open() as stream:
        image = Image.open(stream).convert("RGB")
    pixels = functional.to_dtype(
        functional.pil_to_tensor(image), torch.float32, scale=True
    )
    return file.metadata.path, functional.normalize(
        functional.resize(pixels, [size, size]), mean, std
    )


def write_mask(path, result, output=""):
    """Write the class of each pixel as a PNG file and return the class shares."""
    scores = result.inference["out"]  # shape (classes, size, size)
    classes = scores.argmax(0).numpy().astype("uint8")
    mask = Image.fromarray(classes, mode="P")
    mask.putpalette(palette(len(scores)))
    mask_path = os.path.join(output, f"{PurePath(path).stem}.png")
    with FileSystems.create(mask_path) as file:
        mask.save(file, "PNG")
    shares = np.bincount(classes.ravel(), minlength=len(scores)) / classes.size
    found = {
        str(label): round(float(shares[label]), 4) for label in np.flatnonzero(shares)
    }
    return {"image": path, "mask": mask_path, "shares": found}


def palette(count):
    """Return RGB values for the classes. The first one, the background, is black."""
    hues = [colorsys.hsv_to_rgb(i / count, 0.7, 1) for i in range(count - 1)]
    return [round(255 * channel) for color in [(0, 0, 0), *hues] for channel in color]


def make_network(name, num_classes, aux_loss=False):
    """Build a torchvision network, or the small one, without loading weights."""
    if name != "small":
        return models.get_model(
            name, num_classes=num_classes, aux_loss=aux_loss, weights_backbone=None
        )
    backbone = nn.Sequential(
        convolution(3, 16, 1), convolution(16, 32), convolution(32, 32)
    )
    layers = create_feature_extractor(backbone, {"0": "low", "2": "high"})
    return LRASPP(layers, 16, 32, num_classes, inter_channels=32)


def convolution(inputs, outputs, stride=2):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def train_small_network(steps=60, batch_size=16):
    """Train the small network on the left halves of two photographs."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits().data[:1000]
    photos = [photo[:, :400] for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    network = make_network("small", num_classes=2)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(steps):
        scenes = [make_scene(photos[i % 2], digits, random) for i in range(batch_size)]
        images, masks = (np.stack(each) for each in zip(*scenes, strict=True))
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            network(inputs)["out"], torch.from_numpy(masks)
        )
        loss.backward()
        optimizer.step()
        schedule.step()
    path = os.path.join(tempfile.mkdtemp(prefix="model-"), "small.pt")
    torch.save(network.state_dict(), path)
    return path


def make_scene(photo, digits, random):
    """Return a crop of a photograph with two red digits, and the mask of the digits."""
    top, left = random.integers(0, np.array(photo.shape[:2]) - 64)
    scene = photo[top : top + 64, left : left + 64].astype(float)
    mask = np.zeros((64, 64), np.int64)
    for digit in random.choice(digits, 2):
        ink = np.kron(digit.reshape(8, 8) / 16, np.ones((3, 3)))
        place = tuple(slice(begin, begin + 24) for begin in random.integers(0, 40, 2))
        scene[place] += ink[..., None] * ([230, 20, 20] - scene[place])
        mask[place] |= ink > 0.5
    return scene.astype(np.uint8), mask


def write_scenes(count=100):
    """Write held-out scenes as PNG files and return their file pattern."""
    folder = tempfile.mkdtemp(prefix="scenes-")
    for number, (scene, _) in enumerate(held_out_scenes(count)):
        Image.fromarray(scene).save(os.path.join(folder, f"scene-{number:02}.png"))
    return os.path.join(folder, "*.png")


def held_out_scenes(count=100):
    """Return scenes from the right halves of the photographs, with their masks."""
    from sklearn.datasets import load_sample_images

    digits, _ = samples.held_out_digits()
    photos = [photo[:, 400:] for photo in load_sample_images().images]
    random = np.random.default_rng(1)
    return [make_scene(photos[i % 2], digits, random) for i in range(count)]


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="file pattern of the images; default: photographs with digits"
    )
    parser.add_argument("--output", help="output folder; default: a temporary folder")
    parser.add_argument(
        "--model_state_dict_path", help="state dict saved with torch.save"
    )
    parser.add_argument(
        "--model_arch",
        default="small",
        help="name of a torchvision segmentation network",
    )
    parser.add_argument(
        "--aux_loss",
        action="store_true",
        help="set if the weights include an auxiliary classifier, as FCN's do",
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        default=2,
        help="number of classes, background included",
    )
    parser.add_argument(
        "--image_size", type=int, default=64, help="height and width in pixels"
    )
    for name, default in (("mean", 0.0), ("std", 1.0)):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            default=[default] * 3,
            help=f"{name} of the RGB channels (0 to 1), for normalization",
        )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
