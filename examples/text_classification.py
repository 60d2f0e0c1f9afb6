"""Classify each line of a text file, for example as POSITIVE or NEGATIVE.

    python examples/text_classification.py \\
        --input reviews.txt --output labels \\
        --model distilbert/distilbert-base-uncased-finetuned-sst-2-english

Without arguments, the example classifies the sentiment of short reviews with a small
model that was trained on other reviews.
"""

import argparse
import json
import os
import tempfile

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference, samples
from runinference.huggingface_inference import (
    HuggingFacePipelineModelHandler,
    PipelineTask,
)


def run(argv=None):
    """Run the pipeline. Texts that exceed the model's maximum length are truncated."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="labels-"), "labels")
    handler = HuggingFacePipelineModelHandler(
        PipelineTask.TextClassification,
        model=args.model or samples.review_classifier(),
        device=args.device,
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input or write_reviews())
            | "Strip" >> beam.Map(str.strip)
            | "Drop empty lines" >> beam.Filter(bool)
            | "Classify" >> RunInference(handler, inference_args={"truncation": True})
            | "Format" >> beam.Map(as_json)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Labels: {output}.jsonl")


def as_json(result):
    """Format the text, its label and its probability as a line of JSON."""
    return json.dumps(
        {
            "text": result.example,
            "label": result.inference["label"],
            "probability": round(float(result.inference["score"]), 4),
        },
        ensure_ascii=False,
    )


def write_reviews():
    """Write the held-out reviews to a text file and return its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="reviews-"), "reviews.txt")
    reviews, _ = samples.held_out_reviews()
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{review}\n" for review in reviews)
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="text file, one text per line; default: short reviews"
    )
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument(
        "--model",
        help="directory or Hugging Face Hub name of a text classifier",
    )
    parser.add_argument(
        "--device",
        help="CPU, GPU or a PyTorch device; default: the GPU, if available",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
