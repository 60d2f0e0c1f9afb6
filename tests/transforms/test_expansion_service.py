"""Pipelines in other languages use RunInference through an expansion service."""

from __future__ import annotations

import pickle

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_expansion_api_pb2_grpc,
    beam_fn_api_pb2_grpc,
)
from apache_beam.runners.portability import artifact_service, expansion_service
from apache_beam.runners.worker import worker_pool_main
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.external import ImplicitSchemaPayloadBuilder
from apache_beam.transforms.fully_qualified_named_transform import FullyQualifiedNamedTransform
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance
from sklearn.linear_model import LinearRegression

from common import RUNNER, run

ROWS = [beam.Row(id="a", age=1.0, bmi=2.0), beam.Row(id="b", age=3.0, bmi=4.0)]


@pytest.fixture(scope="module")
def address():
    """An expansion service on the loopback interface, as Beam's expansion_service_main starts it."""
    server = grpc.server(shared_unbounded_instance())
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    expand = expansion_service.ExpansionServiceServicer(
        PipelineOptions(["--sdk_location=container"]), loopback_address=address
    )
    workers = worker_pool_main.BeamFnExternalWorkerPoolServicer()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(workers, server)
    beam_expansion_api_pb2_grpc.add_ExpansionServiceServicer_to_server(expand, server)
    artifacts = artifact_service.ArtifactRetrievalService(open)
    beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(artifacts, server)
    with FullyQualifiedNamedTransform.with_filter("runinference.*"):
        server.start()
        yield address
        server.stop(None).wait()


@pytest.fixture
def model(tmp_path):
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 1.0]]
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(LinearRegression().fit(rows, [4.0, 10.0, 11.0])))
    return str(path)


def infer(address, **arguments):
    payload = {"constructor": "runinference.RunInference.from_callable", "kwargs": arguments}
    return beam.ExternalTransform(
        "beam:transforms:python:fully_qualified_named",
        ImplicitSchemaPayloadBuilder(payload).payload(),
        address,
    )


def test_rows_are_sent_and_typed_rows_come_back(address, model):
    transform = infer(
        address,
        model_handler_provider="SklearnModelHandlerNumpy",
        model_uri=model,
        model_file_type="PICKLE",
        columns=["age", "bmi"],
        keep=["id"],
        output={"progress": "number"},
    )
    with beam.Pipeline(RUNNER) as pipeline:
        predictions = pipeline | beam.Create(ROWS) | transform
        types = predictions.element_type.__annotations__
        assert types["id"] is str
        assert issubclass(types["progress"], float)
        pairs = predictions | beam.Map(lambda row: (row.id, round(row.progress, 3)))
        assert_that(pairs, equal_to([("a", 4.0), ("b", 10.0)]))


def test_wrong_arguments_fail_when_the_pipeline_is_built(address, model):
    transform = infer(address, model_handler_provider="SklearnModelHandlerNumpi", model_uri=model)
    with pytest.raises(RuntimeError, match="Did you mean 'SklearnModelHandlerNumpy'"):
        run(ROWS, transform)
