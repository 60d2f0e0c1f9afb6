"""A pipeline raises an error if its runner would lose elements or results."""

from __future__ import annotations

import re
import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.periodicsequence import PeriodicImpulse

from common import FunctionHandler
from runinference import RunInference
from runinference.errors import OptionError

TWO_WORKERS = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]


class DaskRunner(PipelineRunner):
    """Has the name of Beam's class, whose package is not installed."""


class SparkRunner(PipelineRunner):
    """Has the name of Beam's class."""


def new_pipeline(runner, *options):
    return beam.Pipeline(runner, options=PipelineOptions([*options]))


def infer(examples, **options):
    return examples | "Infer" >> RunInference(FunctionHandler(list), **options)


LOSS = r"there are \d+ workers .* loses most elements .*leave direct_num_workers out"


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing", "in_memory"])
@pytest.mark.parametrize("n", [0, 2])
def test_several_workers_of_the_embedded_runner_lose_elements_of_a_stream(n, mode, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    options = [f"--direct_num_workers={n}", f"--direct_running_mode={mode}"]
    with pytest.raises(OptionError, match=LOSS):
        infer(new_pipeline("FnApiRunner", *options) | PeriodicImpulse())


def test_the_direct_runner_may_lose_elements_of_a_stream(caplog):
    caplog.set_level("WARNING")
    infer(new_pipeline("DirectRunner", *TWO_WORKERS) | PeriodicImpulse())
    assert re.search("DirectRunner may choose Beam's embedded runner.*" + LOSS, caplog.text)


@pytest.mark.parametrize("option", ["model_metadata_pcoll", "inference_args"])
def test_several_workers_lose_elements_of_a_side_input_that_is_a_stream(option):
    pipeline = new_pipeline("FnApiRunner", *TWO_WORKERS)
    stream = pipeline | "Side" >> PeriodicImpulse()
    side = stream if option == "model_metadata_pcoll" else beam.pvalue.AsSingleton(stream)
    with pytest.raises(OptionError, match="An input of RunInference is unbounded"):
        infer(pipeline | beam.Create([1]), **{option: side})


def test_a_batch_pipeline_can_have_several_workers():
    infer(new_pipeline("FnApiRunner", *TWO_WORKERS) | beam.Create([1]))


@pytest.mark.parametrize(
    ("runner", "options"),
    [("FnApiRunner", []), ("DirectRunner", []), ("PrismRunner", TWO_WORKERS)],
    ids=["one worker", "default", "another runner"],
)
def test_a_stream_is_accepted_if_nothing_is_lost(runner, options, caplog):
    caplog.set_level("WARNING")
    infer(new_pipeline(runner, *options) | PeriodicImpulse())
    assert "direct_num_workers" not in caplog.text


def test_dask_raises_an_error():
    with pytest.raises(OptionError, match="DaskRunner drops .* finish_bundle.*another runner"):
        infer(new_pipeline(DaskRunner()) | beam.Create([1]))


def test_spark_raises_an_error_for_streams_only():
    infer(new_pipeline(SparkRunner()) | beam.Create([1]))
    with pytest.raises(OptionError, match="SparkRunner can't run streaming pipelines"):
        infer(new_pipeline(SparkRunner()) | PeriodicImpulse())


def test_the_embedded_runner_still_loses_elements():
    """If this fails, Beam has fixed the loss, and the check can go."""
    arrived = []

    def arrive(timestamp):
        arrived.append(timestamp)

    now = time.time()
    with new_pipeline("FnApiRunner", *TWO_WORKERS) as pipeline:
        _ = pipeline | PeriodicImpulse(now, now + 3.2, 0.1) | beam.Map(arrive)
    assert len(arrived) < 32


class FlinkRunner(PipelineRunner):
    """Has the name of Beam's class."""


CHECKPOINTS = "--checkpointing_interval=2000"


@pytest.mark.parametrize(
    ("options", "loses"),
    [
        ([CHECKPOINTS], True),
        (["--checkpointing_interval", "500"], True),
        ([CHECKPOINTS, "--finish_bundle_before_checkpointing"], False),
        (["--checkpointing_interval=-1"], False),
        ([], False),
    ],
)
def test_flink_may_lose_elements_of_a_stream_at_checkpoints(options, loses, caplog):
    caplog.set_level("WARNING")
    infer(new_pipeline(FlinkRunner(), *options) | PeriodicImpulse())
    assert ("--finish_bundle_before_checkpointing" in caplog.text) == loses


def test_flink_loses_nothing_in_batch_pipelines(caplog):
    caplog.set_level("WARNING")
    infer(new_pipeline(FlinkRunner(), CHECKPOINTS) | beam.Create([1]))
    assert "checkpoint" not in caplog.text
