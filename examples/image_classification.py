"""Classify image files with a torchvision model.

    python examples/image_classification.py \\
        --input 'photos/*.jpg' --output labels \\
        --model_arch resnet18 --model_state_dict_path resnet18.pth --num_classes 1000 \\
        --image_size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

The output has one line of JSON per image. Without arguments, the example classifies
handwritten digits with a small ShuffleNet that was trained on other digits.
"""

import argparse
import json
import os
import tempfile

import apache_beam as beam
import torch
from apache_beam.io import fileio
from apache_beam.io.fileio import EmptyMatchTreatment
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from runinference import KeyedModelHandler, RunInference, samples
from runinference.pytorch_inference import PytorchModelHandlerTensor
from torchvision import models
from torchvision.transforms.v2 import functional


def run(argv=None):
    """Run the pipeline. Images are resized to one size, so that they can be batched."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="labels-"), "labels")
    handler = PytorchModelHandlerTensor(
        state_dict_path=args.model_state_dict_path or samples.digits_shufflenet(),
        model_class=models.get_model_builder(args.model_arch),
        model_params={"num_classes": args.num_classes},
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Find"
            >> fileio.MatchFiles(
                args.input or write_digits(), EmptyMatchTreatment.DISALLOW
            )
            | "Open" >> fileio.ReadMatches()
            | "Decode" >> beam.Map(read_image, args.image_size, args.mean, args.std)
            | "Classify" >> RunInference(KeyedModelHandler(handler))
            | "Format" >> beam.MapTuple(as_json)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Predictions: {output}.jsonl")


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


def as_json(path, result):
    """Format the path, the predicted class and its probability as a line of JSON."""
    probability, label = result.inference.softmax(0).max(0)
    return json.dumps(
        {
            "image": path,
            "label": int(label),
            "probability": round(float(probability), 4),
        }
    )


def write_digits():
    """Write the held-out digits as PNG files and return their file pattern."""
    folder = tempfile.mkdtemp(prefix="digits-")
    for number, (image, label) in enumerate(
        zip(*samples.held_out_digits(), strict=True)
    ):
        pixels = (image.reshape(8, 8) / 16 * 255).round().astype("uint8")
        Image.fromarray(pixels).save(
            os.path.join(folder, f"{number:03}-shows-{label}.png")
        )
    return os.path.join(folder, "*.png")


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="file pattern of the images; default: handwritten digits"
    )
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument(
        "--model_state_dict_path", help="state dict saved with torch.save"
    )
    parser.add_argument(
        "--model_arch",
        default="shufflenet_v2_x0_5",
        help="name of a torchvision classifier",
    )
    parser.add_argument("--num_classes", type=int, default=10, help="number of classes")
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
