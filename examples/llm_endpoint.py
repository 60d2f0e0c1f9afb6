"""Send each line of a file to an LLM with an OpenAI-compatible API.

    python examples/llm_endpoint.py --input reviews.txt --output answers.jsonl \\
        --base_url https://api.openai.com/v1 --model MODEL \\
        --api_key_env OPENAI_API_KEY --prompt "Is this good or bad? Say one word."

The output has one line of JSON per line of the file, with an answer or an error.
Without arguments, the example sends three reviews to a local test server, which answers
with the text in capitals.
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
    """Run the pipeline. Each line is keyed by its line number."""
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
        results, dead_letters = (
            pipeline
            | "Path" >> beam.Create([path])
            | "Read" >> beam.FlatMap(read_lines)
            | "Generate" >> RunInference(keyed).with_exception_handling()
        )
        answers = results | "Answers" >> beam.Map(as_answer)
        failures = dead_letters.failed_inferences | "Failures" >> beam.Map(as_failure)
        lines = (answers, failures) | beam.Flatten() | "Format" >> beam.Map(json.dumps)
        _ = lines | "Write" >> beam.io.WriteToText(output, shard_name_template="")
        result = pipeline.run()
        result.wait_until_finish()
    print(f"Answers: {output}")
    for name, tokens in sorted(count_tokens(result).items()):
        print(f"{name}: {tokens}")


class WithPrompt:
    """Turn a keyed line into chat messages: the prompt, then the line."""

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, keyed_line):
        number, line = keyed_line
        return number, [
            {"role": "system", "content": self.prompt},
            {"role": "user", "content": line},
        ]


def as_answer(keyed_result):
    """Return a line and the model's answer as a dictionary."""
    number, result = keyed_result
    return {
        "line": number,
        "text": result.example[-1]["content"],
        "answer": result.inference.text,
        "finish": result.inference.finish_reason,
    }


def as_failure(dead_letter):
    """Return a failed line and its error message as a dictionary."""
    (number, messages), (_, error, _) = dead_letter
    return {"line": number, "text": messages[-1]["content"], "error": error}


def read_lines(path):
    """Yield each non-empty line of a file, keyed by its line number, starting at 1."""
    with FileSystems.open(path) as file:
        for number, line in enumerate(file.read().decode().splitlines(), start=1):
            if line.strip():
                yield number, line.strip()


def write_reviews():
    """Write the sample reviews to a file and return its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="reviews-"), "reviews.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(REVIEWS))
    return path


@contextlib.contextmanager
def endpoint(args):
    """Yield the base URL and model name, by default those of a local test server."""
    if args.base_url:
        yield args.base_url, args.model
    else:
        with servers.llm() as base_url:
            yield base_url, args.model or "shout"


def count_tokens(result):
    """Return the token counters of the pipeline, by metric name."""
    metrics = result.metrics().query(MetricsFilter().with_namespace("BeamML_OpenAI"))
    counters = {each.key.metric.name: each.committed for each in metrics["counters"]}
    return {name: n for name, n in counters.items() if name.endswith("tokens")}


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="text file, one prompt input per line")
    parser.add_argument(
        "--output", help="output JSON lines file; default: in a temporary folder"
    )
    parser.add_argument(
        "--base_url", help="base URL of an OpenAI-compatible API, usually ending in /v1"
    )
    parser.add_argument("--model", help="name of the model on that server")
    parser.add_argument(
        "--api_key_env",
        help="environment variable that holds the API key; default: no key",
    )
    parser.add_argument(
        "--prompt",
        default="Is this good or bad? Say one word.",
        help="system prompt for each line",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=50, help="maximum tokens per answer"
    )
    parser.add_argument("--max_concurrent_requests", type=int, default=16)
    args, pipeline_args = parser.parse_known_args(argv)
    if args.base_url and not args.model:
        parser.error("--base_url needs --model, the name of the model on that server")
    return args, pipeline_args


if __name__ == "__main__":
    run()
