"""Classify handwritten digits on workers that run the image of the Dockerfile.

python examples/container/pipeline.py --model=/models/digits.pickle --output=counts
"""

import argparse

import apache_beam as beam
import digit_steps
from apache_beam.options.pipeline_options import PipelineOptions
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from sklearn.datasets import load_digits


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="/models/digits.pickle")
    parser.add_argument("--output", default="counts")
    args, beam_args = parser.parse_known_args(argv)

    images, _ = load_digits(return_X_y=True)
    handler = SklearnModelHandlerNumpy(args.model)
    with beam.Pipeline(options=PipelineOptions(beam_args)) as pipeline:
        (
            pipeline
            | beam.Create(list(images[1000:]))
            | beam.Reshuffle()
            | RunInference(handler.with_preprocess_fn(digit_steps.to_unit_range))
            | beam.Map(lambda result: int(result.inference))
            | beam.combiners.Count.PerElement()
            | beam.MapTuple(lambda digit, count: f"{digit}: {count}")
            | beam.io.WriteToText(args.output, shard_name_template="")
        )


if __name__ == "__main__":
    main()
