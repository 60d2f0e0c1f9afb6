"""Find named entities in texts with spaCy, using a custom model handler.

    python examples/custom_handler.py \\
        --input texts.txt --rules rules.jsonl --output names.jsonl

Each line of the rules file is a pattern for spaCy's entity ruler, for example
{"label": "PRODUCT", "pattern": "Apache Beam"}. Without arguments, the example uses the
rules and sentences below.
"""

import argparse
import json
import os
import tempfile

import apache_beam as beam
import spacy
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import ModelHandler, PredictionResult, RunInference

RULES = r"""
{"label": "PRODUCT", "pattern": "Apache Beam"}
{"label": "PLACE", "pattern": [{"LOWER": "new"}, {"LOWER": "york"}]}
{"label": "YEAR", "pattern": [{"TEXT": {"REGEX": "^(19|20)\\d\\d$"}}]}
"""
TEXTS = """
Apache Beam became a project of its own in 2016.
She moved from new york to Lisbon.
Nothing to be found here.
"""


class NamesHandler(ModelHandler):
    """Find named entities in texts with the entity ruler patterns in a file."""

    def __init__(self, rules_path, **options):
        super().__init__(**options)
        self.rules_path = rules_path

    def load_model(self):
        nlp = spacy.blank("en")
        with FileSystems.open(self.rules_path) as file:
            rules = [json.loads(line) for line in file.read().splitlines()]
        nlp.add_pipe("entity_ruler").add_patterns(rules)
        return nlp

    def run_inference(self, batch, model, inference_args=None):
        for text, doc in zip(batch, model.pipe(batch), strict=True):
            names = [(entity.text, entity.label_) for entity in doc.ents]
            yield PredictionResult(text, names, self.rules_path)

    def update_model_path(self, model_path=None):
        self.rules_path = model_path or self.rules_path


def run(argv=None):
    """Run the pipeline. Each line of the input is one text."""
    args, pipeline_args = parse_args(argv)
    options = PipelineOptions(["--runner=FnApiRunner", *pipeline_args])
    folder = tempfile.mkdtemp(prefix="names-")
    output = args.output or os.path.join(folder, "names.jsonl")
    handler = NamesHandler(args.rules or write_file(folder, "rules.jsonl", RULES))
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Read"
            >> beam.io.ReadFromText(
                args.input or write_file(folder, "texts.txt", TEXTS)
            )
            | "Find names" >> RunInference(handler)
            | "Format" >> beam.Map(as_json)
            | "Write" >> beam.io.WriteToText(output, shard_name_template="")
        )
    with FileSystems.open(output) as file:
        names = [json.loads(line)["names"] for line in file]
    print(f"Names: {output}")
    print(f"{sum(map(len, names))} names in {len(names)} texts")


def as_json(result):
    """Format a text and its names, each with its label, as a line of JSON."""
    return json.dumps({"text": result.example, "names": result.inference})


def write_file(folder, name, text):
    """Write text to a file in the folder and return its path."""
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.lstrip())
    return path


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="text file, one text per line")
    parser.add_argument("--rules", help="JSON lines file of entity ruler patterns")
    parser.add_argument(
        "--output",
        help="output JSON lines file; default: in a temporary folder",
    )
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    run()
