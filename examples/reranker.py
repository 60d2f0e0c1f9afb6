"""Rank passages by their relevance to a query, with a cross-encoder.

    python examples/reranker.py \\
        --input candidates.jsonl --output ranked --top 3 \\
        --model cross-encoder/ms-marco-MiniLM-L6-v2

Each line of the input is a JSON object with a query and a passage, such as a result of
an embedding search. Without arguments, the example ranks texts about journeys with a
small model, which counts words.
"""

import argparse
import json
import os
import tempfile

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference, samples
from runinference.huggingface_inference import HuggingFaceModelHandlerText
from transformers import AutoModelForSequenceClassification


def run(argv=None):
    """Run the pipeline. Each element is a row with a query and a passage."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="ranked-")
    output = args.output or os.path.join(folder, "ranked")
    handler = HuggingFaceModelHandlerText(
        args.model or samples.reranker(),
        AutoModelForSequenceClassification,
        device=args.device,
    )
    # The two columns are the pair of texts that a cross-encoder takes.
    score = RunInference(
        handler, columns=["query", "passage"], output={"logits": float}
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromJson(args.input or write_candidates(folder))
            | "Score" >> score
            | "Key by query" >> beam.Map(lambda row: (row.query, row))
            | "Best" >> beam.combiners.Top.PerKey(args.top, key=lambda row: row.logits)
            | "Format" >> beam.MapTuple(as_json)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Ranked: {output}.jsonl")


def as_json(query, rows):
    """Format a query and its best passages as a line of JSON."""
    passages = [{"passage": row.passage, "score": round(row.logits, 3)} for row in rows]
    return json.dumps({"query": query, "passages": passages}, ensure_ascii=False)


def write_candidates(folder):
    """Write three questions, each with twelve passages, and return the path."""
    questions = samples.held_out_questions()[:12]
    path = os.path.join(folder, "candidates.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for asked in questions[2:5]:
            for answer in questions:
                pair = {"query": asked.question, "passage": answer.context}
                file.write(json.dumps(pair) + "\n")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--input",
        help="JSON Lines files with the fields query and passage",
    )
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument(
        "--model", help="directory or hub name of a cross-encoder with one score"
    )
    parser.add_argument(
        "--top", type=int, default=3, help="number of passages per query"
    )
    parser.add_argument("--device", default="CPU", help="CPU, GPU or a PyTorch device")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
