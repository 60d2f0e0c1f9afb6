"""Fill masked words in sentences with a masked language model.

    python examples/language_modeling.py \\
        --input sentences.txt --output filled --top 3 \\
        --model google-bert/bert-base-uncased

Each line of the input contains one or more mask tokens of the model, such as [MASK] or
<mask>. Lines without a mask go to a dead-letter file. Without arguments, the example
fills in days, months and animals with a small model that was trained on similar
sentences.
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
    """Run the pipeline. Lines that fail go to a dead-letter file."""
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
        filled, dead_letters = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input or write_sentences())
            | "Strip" >> beam.Map(str.strip)
            | "Drop empty lines" >> beam.Filter(bool)
            | "Fill" >> fill
        )
        _ = filled | "Format" >> beam.Map(as_json) | "Write" >> write(output)
        _ = (
            dead_letters.failed_inferences
            | "Format failures" >> beam.MapTuple(failure_as_json)
            | "Write failures" >> write(f"{output}-failed")
        )
    print(f"Filled: {output}.jsonl")


def write(path):
    """Return a transform that writes lines to a single file."""
    return beam.io.WriteToText(path, ".jsonl", shard_name_template="")


def as_json(result):
    """Format a sentence and the most probable words for each mask as a line of JSON."""
    found = result.inference  # a list of words, or one list per mask
    blanks = found if isinstance(found[0], list) else [found]
    words = [
        {word["token_str"].strip(): round(float(word["score"]), 4) for word in blank}
        for blank in blanks
    ]
    return json.dumps({"text": result.example, "blanks": words}, ensure_ascii=False)


def failure_as_json(text, error):
    """Format a failed sentence and its error message as a line of JSON."""
    return json.dumps({"text": text, "error": error[1]}, ensure_ascii=False)


def write_sentences():
    """Write the held-out sentences to a text file and return its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="sentences-"), "sentences.txt")
    sentences, _ = samples.held_out_blanks()
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in sentences)
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input", help="text file, one sentence per line; default: sample sentences"
    )
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument(
        "--model", help="directory or Hugging Face Hub name of a masked language model"
    )
    parser.add_argument("--top", type=int, default=3, help="number of words per mask")
    parser.add_argument(
        "--device",
        help="CPU, GPU or a PyTorch device; default: the GPU, if available",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
