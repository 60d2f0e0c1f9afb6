"""Asks a language model about each line of a file; writes the answers as JSON lines.

    python examples/llm_endpoint.py --input reviews.txt --output answers.jsonl \\
        --base_url https://api.openai.com/v1 --model MODEL \\
        --api_key_env OPENAI_API_KEY --prompt "Is this good or bad? Say one word."

Without arguments it starts a stand-in for a language model on this machine, which says
everything in capitals, and asks that about three reviews.
"""

import argparse
import contextlib
import json
import os
import tempfile

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import KeyedModelHandler, RunInference
from runinference.openai_inference import OpenAIChatModelHandler
from runinference.samples import servers

REVIEWS = ["The soup was cold.", "We will come back!", "A bit loud, but a good cook."]


def run(argv=None):
    """Runs the pipeline; each line travels with its number."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    path = args.input or write_reviews()
    output = args.output or os.path.join(
        tempfile.mkdtemp(prefix="answers-"), "answers.jsonl"
    )
    with endpoint(args) as (base_url, model):
        handler = OpenAIChatModelHandler(
            base_url,
            model,
            api_key_env=args.api_key_env or None,
            parameters={"temperature": 0, "max_tokens": args.max_tokens},
            max_concurrent_requests=args.max_concurrent_requests,
        )
        keyed = KeyedModelHandler(handler).with_preprocess_fn(WithPrompt(args.prompt))
        pipeline = beam.Pipeline(options=options)
        results, aside = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_lines)
            | "Ask" >> RunInference(keyed).with_exception_handling()
        )
        answers = results | "Answer" >> beam.Map(as_answer)
        failures = aside.failed_inferences | "Failure" >> beam.Map(as_failure)
        lines = (answers, failures) | beam.Flatten() | "Format" >> beam.Map(json.dumps)
        _ = lines | "Write" >> beam.io.WriteToText(output, shard_name_template="")
        result = pipeline.run()
        result.wait_until_finish()
    print(f"Answers: {output}")
    for name, tokens in sorted(count_tokens(result).items()):
        print(f"{name}: {tokens}")


class WithPrompt:
    """Makes messages of a numbered line: what is asked, and the line."""

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, numbered):
        number, line = numbered
        return number, [
            {"role": "system", "content": self.prompt},
            {"role": "user", "content": line},
        ]


def as_answer(numbered):
    """A record of a line, and of what the model said of it."""
    number, result = numbered
    said = result.inference
    text = result.example[-1]["content"]
    return {
        "line": number,
        "text": text,
        "answer": said.text,
        "finish": said.finish_reason,
    }


def as_failure(letter):
    """A record of a line that has no answer, and why."""
    (number, messages), (_, error, _) = letter
    return {"line": number, "text": messages[-1]["content"], "error": error}


def read_lines(path):
    """The lines of a file that are not empty, with their numbers from 1."""
    with FileSystems.open(path) as file:
        for number, line in enumerate(file.read().decode().splitlines(), start=1):
            if line.strip():
                yield number, line.strip()


def write_reviews():
    """Writes a few reviews to a file; gives its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="reviews-"), "reviews.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(REVIEWS))
    return path


@contextlib.contextmanager
def endpoint(args):
    """The address of the server and the name of its model; the stand-in by default."""
    if args.base_url:
        yield args.base_url, args.model
    else:
        with servers.llm() as base_url:
            yield base_url, args.model or "shout"


def count_tokens(result):
    """The tokens that the server counted, by the names of their metrics."""
    found = result.metrics().query(MetricsFilter().with_namespace("BeamML_OpenAI"))[
        "counters"
    ]
    counted = {counter.key.metric.name: counter.committed for counter in found}
    return {name: n for name, n in counted.items() if name.endswith("tokens")}


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="text file, one example a line")
    parser.add_argument(
        "--output", help="file of JSON lines to write; by default a temporary one"
    )
    parser.add_argument(
        "--base_url", help="address of an OpenAI-compatible API, mostly ending in /v1"
    )
    parser.add_argument("--model", help="name of the model on that server")
    parser.add_argument(
        "--api_key_env",
        help="environment variable that holds the key; none if not given",
    )
    parser.add_argument(
        "--prompt",
        default="Is this good or bad? Say one word.",
        help="what is asked about each",
    )
    parser.add_argument("--max_tokens", type=int, default=50, help="the longest answer")
    parser.add_argument("--max_concurrent_requests", type=int, default=16)
    args, others = parser.parse_known_args(argv)
    if args.base_url and not args.model:
        parser.error("--base_url needs --model, the name of the model on that server")
    return args, others


if __name__ == "__main__":
    run()
