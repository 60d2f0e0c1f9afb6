"""Start a Python worker for the environment PROCESS, as the program `boot` of Beam's container images does."""

from __future__ import annotations

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import (
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("id", "provision_endpoint", "control_endpoint", "logging_endpoint"):
        parser.add_argument(f"--{name}", default="")
    args, _ = parser.parse_known_args()
    # Prism puts quotes around the name.
    worker_id = args.id.strip("'")
    with grpc.insecure_channel(args.provision_endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        response = service.GetProvisionInfo(request, metadata=[("worker_id", worker_id)])
    info = response.info
    control = args.control_endpoint or info.control_endpoint.url
    logging = args.logging_endpoint or info.logging_endpoint.url
    os.environ.update(
        WORKER_ID=worker_id,
        PIPELINE_OPTIONS=json_format.MessageToJson(info.pipeline_options),
        RUNNER_CAPABILITIES=" ".join(info.runner_capabilities),
        CONTROL_API_SERVICE_DESCRIPTOR=describe(control),
        LOGGING_API_SERVICE_DESCRIPTOR=describe(logging),
    )
    sdk_worker_main.main(sys.argv)


def describe(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


if __name__ == "__main__":
    main()
