"""Answers questions about texts with a part of the text, by an extractive model.

    python examples/question_answering.py \\
        --input questions.jsonl --output answers \\
        --model distilbert/distilbert-base-cased-distilled-squad

Each line of the input is JSON: {"question": "Who saw Rome?", "context": "Anna saw Rome
in May."} Without arguments it answers questions about journeys, with a small model that
was trained on other ones.
"""

import argparse
import json
import os
import tempfile

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference, samples
from runinference.huggingface_inference import HuggingFaceModelHandlerText
from transformers import AutoModelForQuestionAnswering, AutoTokenizer


def run(argv=None):
    """Runs the pipeline; questions and contexts of similar length share a batch."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="answers-"), "answers")
    model = args.model or samples.question_answerer()
    handler = HuggingFaceModelHandlerText(
        model,
        AutoModelForQuestionAnswering,
        args.device,
        tokenizer_args={"truncation": "only_second"},
        max_padded_size=args.max_tokens_a_batch,
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input or write_questions())
            | "Leave out empty lines" >> beam.Filter(str.strip)
            | "Parse" >> beam.Map(parse)
            | "Score" >> RunInference(handler)
            | "Answer" >> beam.ParDo(Answer(model, args.longest))
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Answers: {output}.jsonl")


def parse(line):
    """A pair: the question and the text it is about."""
    asked = json.loads(line)
    return asked["question"], asked["context"]


class Answer(beam.DoFn):
    """A line for each question: the likeliest part of its context, and how likely."""

    def __init__(self, model, longest):
        self.model = model
        self.longest = longest

    def setup(self):
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)

    def process(self, result):
        question, context = result.example
        start, end, probability = self.best_span(question, context, result.inference)
        answer = {
            "question": question,
            "context": context,
            "answer": context[start:end],
        }
        yield json.dumps(
            {**answer, "probability": round(probability, 4)}, ensure_ascii=False
        )

    def best_span(self, question, context, logits):
        """Where the likeliest answer starts and ends, and the probability of both."""
        starts, ends = logits["start_logits"], logits["end_logits"]
        encoded = self.tokenizer(
            question, context, truncation="only_second", max_length=len(starts)
        )
        of_context = [n for n, part in enumerate(encoded.sequence_ids()) if part == 1]
        starts, ends = (x[of_context].softmax(0) for x in (starts, ends))
        # Every start with every end that is not before it, nor too far behind.
        both = (starts[:, None] * ends[None]).triu().tril(self.longest - 1)
        first, last = divmod(int(both.argmax()), len(of_context))
        chars = [encoded.token_to_chars(of_context[n]) for n in (first, last)]
        return chars[0].start, chars[1].end, float(both.max())


def write_questions():
    """Writes the held-out questions as a file of lines; gives its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="questions-"), "questions.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for question, context, _ in samples.held_out_questions():
            file.write(json.dumps({"question": question, "context": context}) + "\n")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="file of questions, as JSON, one a line")
    parser.add_argument(
        "--output",
        help="file to write, without its ending .jsonl; by default in a new folder",
    )
    parser.add_argument(
        "--model",
        help="directory or hub name of a model for extractive question answering",
    )
    parser.add_argument(
        "--longest", type=int, default=15, help="most tokens in an answer"
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
