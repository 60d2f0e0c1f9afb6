"""Answer questions about texts with an extractive question answering model.

    python examples/question_answering.py \\
        --input questions.jsonl --output answers \\
        --model distilbert/distilbert-base-cased-distilled-squad

Each line of the input is JSON: {"question": "Who saw Rome?", "context": "Anna saw Rome
in May."} Without arguments, the example answers questions about journeys with a small
model that was trained on similar questions.
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
    """Run the pipeline. Inputs of similar length are batched together."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    output = args.output or os.path.join(tempfile.mkdtemp(prefix="answers-"), "answers")
    model = args.model or samples.question_answerer()
    handler = HuggingFaceModelHandlerText(
        model,
        AutoModelForQuestionAnswering,
        args.device,
        tokenizer_args={"truncation": "only_second"},
        max_padded_size=args.max_tokens_per_batch,
    )
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input or write_questions())
            | "Drop empty lines" >> beam.Filter(str.strip)
            | "Parse" >> beam.Map(parse)
            | "Score" >> RunInference(handler)
            | "Answer" >> beam.ParDo(Answer(model, args.longest))
            | "Write" >> beam.io.WriteToText(output, ".jsonl", shard_name_template="")
        )
    print(f"Answers: {output}.jsonl")


def parse(line):
    """Return the question and its context."""
    fields = json.loads(line)
    return fields["question"], fields["context"]


class Answer(beam.DoFn):
    """Format the most probable span of each context as a line of JSON."""

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
        """Return the start, end and probability of the most probable answer."""
        starts, ends = logits["start_logits"], logits["end_logits"]
        encoded = self.tokenizer(
            question, context, truncation="only_second", max_length=len(starts)
        )
        context_tokens = [
            n for n, part in enumerate(encoded.sequence_ids()) if part == 1
        ]
        starts, ends = (x[context_tokens].softmax(0) for x in (starts, ends))
        # Score every span of at most self.longest tokens.
        both = (starts[:, None] * ends[None]).triu().tril(self.longest - 1)
        first, last = divmod(int(both.argmax()), len(context_tokens))
        chars = [encoded.token_to_chars(context_tokens[n]) for n in (first, last)]
        return chars[0].start, chars[1].end, float(both.max())


def write_questions():
    """Write the held-out questions to a JSON lines file and return its path."""
    path = os.path.join(tempfile.mkdtemp(prefix="questions-"), "questions.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for question, context, _ in samples.held_out_questions():
            file.write(json.dumps({"question": question, "context": context}) + "\n")
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="JSON lines file of questions and contexts")
    parser.add_argument(
        "--output",
        help="output file without .jsonl; default: a temporary folder",
    )
    parser.add_argument(
        "--model",
        help="directory or Hugging Face Hub name of an extractive QA model",
    )
    parser.add_argument(
        "--longest", type=int, default=15, help="maximum tokens per answer"
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
