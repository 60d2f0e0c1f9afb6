"""Finds the words for the blanks in sentences, with a masked language model.

    python examples/language_modeling.py \\
        --input sentences.txt --output filled --top 3 \\
        --model google-bert/bert-base-uncased

Each line of the input has a blank, or several, written as the model writes it: [MASK]
or <mask>. Lines that have none come out in a file of their own. Without arguments it
fills blanks about days, months and animals, with a small model that was trained on
other sentences about them.
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
    """Runs the pipeline; a line that the model cannot take is set aside."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="filled-"), "filled")
    handler = HuggingFacePipelineModelHandler(
        PipelineTask.FillMask,
        model=args.model or samples.blank_filler(),
        device=args.device,
    )
    fill = RunInference(
        handler, inference_args={"top_k": args.top}
    ).with_exception_handling()
    with beam.Pipeline(options=options) as pipeline:
        filled, dead = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input or write_sentences())
            | "Strip" >> beam.Map(str.strip)
            | "Leave out empty lines" >> beam.Filter(bool)
            | "Fill" >> fill
        )
        _ = filled | "Format" >> beam.Map(as_json) | "Write" >> write(output)
        _ = (
            dead.failed_inferences
            | "Say why" >> beam.MapTuple(why)
            | "Write what failed" >> write(f"{output}-failed")
        )
    print(f"Filled: {output}.jsonl")


def write(path):
    """Writes lines to one file."""
    return beam.io.WriteToText(path, ".jsonl", shard_name_template="")


def as_json(result):
    """A line: the sentence, and the likeliest words for each of its blanks."""
    found = result.inference  # a list of words; for several blanks, a list of such
    blanks = found if isinstance(found[0], list) else [found]
    words = [
        {word["token_str"].strip(): round(float(word["score"]), 4) for word in b}
        for b in blanks
    ]
    return json.dumps({"text": result.example, "blanks": words}, ensure_ascii=False)


def why(text, error):
    """A line: the sentence that failed, and the message of its error."""
    return json.dumps({"text": text, "error": error[1]}, ensure_ascii=False)


def write_sentences():
    """Writes the held-out sentences as a file of lines; gives its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="sentences-"), "sentences.txt")
    sentences, _ = samples.held_out_blanks()
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in sentences)
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="file of sentences, one a line; by default some of the sample's"
    )
    parser.add_argument(
        "--output",
        help="file to write, without its ending .jsonl; by default in a new folder",
    )
    parser.add_argument(
        "--model", help="directory or hub name of a masked language model"
    )
    parser.add_argument(
        "--top", type=int, default=3, help="how many words for each blank"
    )
    parser.add_argument(
        "--device",
        help="CPU, GPU or a device of PyTorch; by default a GPU if there is one",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
