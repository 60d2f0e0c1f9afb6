"""The batch API: nothing is lost, mixed up or paid for twice, even if the provider or the runner fails."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket
import threading
from typing import Literal

import apache_beam as beam
import httpx
import numpy as np
import pytest
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from common import RUNNER, CollectElements
from runinference import Backoff, KeyedModelHandler, RunInference
from runinference.errors import (
    ElementError,
    EndpointError,
    EndpointRefusedError,
    InvalidOutputError,
    NotCalledError,
    OptionError,
)
from runinference.openai_inference import (
    BatchApi,
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
    OpenAIEmbeddingsModelHandler,
    Prices,
)
from runinference.samples import servers
from runinference.samples.batch_jobs import BatchJobs
from runinference.samples.local_server import ErrorResponse
from scripted_server import scripted_server

TEXTS = [f"text {n}" for n in range(10, 16)]


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "batches")


def chat(url, folder, batch=(), **options):
    batch_api = BatchApi(**{"folder": folder, "poll_secs": 0.01, **dict(batch)})
    options = {"backoff": Backoff(initial_secs=0), "throttle_delay_secs": 0, **options}
    return OpenAIChatModelHandler(url, "shout", None, batch_api=batch_api, **options)


def outcomes(handler, elements):
    """Return the results and the errors of elements, which are their own keys, from a pipeline."""
    good, bad = [], []
    pipeline = beam.Pipeline(runner=RUNNER)
    results, dead_letters = (
        pipeline
        | beam.Create([(element, element) for element in elements], reshuffle=False)
        | RunInference(KeyedModelHandler(handler)).with_exception_handling()
    )
    results | "good" >> beam.ParDo(CollectElements(good))
    dead_letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    pipeline.run().wait_until_finish()
    errors = {key: (kind, message) for (key, _), (kind, message, _) in CollectElements.take(bad)}
    return CollectElements.take(good), errors


def check_results(results, texts):
    assert sorted((key, result.example, result.inference.text) for key, result in results) == [
        (text, text, text.upper()) for text in sorted(texts)
    ]


def answer(text):
    """Return the response of a chat server."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def paid(url):
    return httpx.get(f"{url}/usage").json()["requests"]


def batches(url):
    return httpx.get(f"{url}/batches?limit=100").json()["data"]


# --- results


def test_results_have_the_key_window_and_timestamp_of_their_element(folder):
    collected = []
    with servers.llm(batch_faults=["other order"], batch_polls=2) as url:
        with beam.Pipeline(runner=RUNNER) as pipeline:
            _ = (
                pipeline
                | beam.Create(range(6), reshuffle=False)
                | beam.Map(lambda n: TimestampedValue((n, f"text {n}"), 10 * n))
                | beam.WindowInto(FixedWindows(20))
                | RunInference(KeyedModelHandler(chat(url, folder)))
                | beam.ParDo(CollectElements(collected))
            )
        [batch] = batches(url)
    found = [
        (key, result.inference.text, int(timestamp), int(window.start))
        for (key, result), timestamp, window in collected
    ]
    CollectElements.take(collected)
    assert sorted(found) == [(n, f"TEXT {n}", 10 * n, 20 * (n // 2)) for n in range(6)]
    assert batch["endpoint"] == "/v1/chat/completions"
    assert batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}


def test_completions_and_embeddings_use_the_batch_api(folder):
    options = {"batch_api": BatchApi(folder, poll_secs=0.01)}
    with servers.llm() as url:
        results = OpenAICompletionsModelHandler(url, "shout", None, **options).predict(["a", "b"])
        assert [result.inference.text for result in results] == ["A", "B"]
        embeddings = OpenAIEmbeddingsModelHandler(url, "words", None, **options)
        batched = [result.inference for result in embeddings.predict(["a b", "c"])]
        live = OpenAIEmbeddingsModelHandler(url, "words", None).predict(["a b", "c"])
    np.testing.assert_array_equal(batched, [result.inference for result in live])


def test_files_are_split_at_the_limits_of_the_provider(folder):
    with servers.llm() as url:
        results, _ = outcomes(chat(url, folder, {"max_requests": 4}), TEXTS)
        check_results(results, TEXTS)
        assert sorted(each["request_counts"]["total"] for each in batches(url)) == [2, 4]
    with servers.llm() as url:
        handler = chat(url, folder, {"max_file_bytes": 1_000, "job": "small files"})
        results, errors = outcomes(handler, [*TEXTS, "long " * 400])
        check_results(results, TEXTS)
        assert len(batches(url)) > 1
    [(kind, message)] = errors.values()
    assert kind is ElementError
    assert "a file of the batch API may have only 1,000 (max_file_bytes)" in message


def test_equal_requests_are_paid_once(folder):
    with servers.llm() as url:
        results = chat(url, folder).predict(["a", "b", "a", "a"])
        assert paid(url) == 2
    assert [result.inference.text for result in results] == ["A", "B", "A", "A"]


# --- nothing is paid for twice


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["busy"],
        ["completed without submit response"],
        ["other order", "repeated line", "invalid line"],
        ["busy", "completed without submit response", "repeated line"],
    ],
    ids=str,
)
def test_faults_that_lose_nothing_cost_nothing(faults, folder):
    with servers.llm(batch_faults=faults) as url:
        results, errors = outcomes(chat(url, folder), TEXTS)
        assert (paid(url), len(batches(url))) == (6, 1)
    check_results(results, TEXTS)
    assert not errors


def test_a_job_that_runs_again_with_other_batches_pays_only_for_new_elements(folder):
    with servers.llm() as url:
        outcomes(chat(url, folder, max_batch_size=4), TEXTS)
        again = pickle.loads(pickle.dumps(chat(url, folder)))
        results, _ = outcomes(again, ["new", *reversed(TEXTS)])
        assert (paid(url), len(batches(url))) == (7, 3)
        check_results(results, [*TEXTS, "new"])
        # Another job, another model and other parameters have other requests.
        chat(url, folder, {"job": "another"}).predict(TEXTS)
        chat(url, folder, parameters={"temperature": 0}).predict(TEXTS)
        assert paid(url) == 19


def edit_record(folder, **fields):
    [name] = [name for name in os.listdir(folder) if name.endswith(".json")]
    path = os.path.join(folder, name)
    with open(path) as file:
        record = json.load(file)
    with open(path, "w") as file:
        json.dump({**record, **fields}, file)


@pytest.mark.parametrize("process", [os.getpid(), 2**22 + 1], ids=["this", "a dead one"])
def test_the_batch_of_a_worker_that_died_while_it_submitted_is_not_paid_for_again(process, folder):
    with servers.llm() as url:
        chat(url, folder).predict(TEXTS)
        edit_record(folder, batch_id=None, host=socket.gethostname(), process=process)
        chat(url, folder).predict(TEXTS)
        assert (paid(url), len(batches(url))) == (6, 1)


@pytest.mark.parametrize(
    "owner",
    [
        {"host": "another machine"},
        {"host": socket.gethostname(), "process": os.getppid()},
    ],
    ids=["another machine", "another process"],
)
def test_a_worker_waits_while_another_one_submits_the_same_requests(owner, folder):
    with servers.llm() as url:
        chat(url, folder).predict(TEXTS)
        [batch] = batches(url)
        edit_record(folder, batch_id=None, file_id="file-unknown", **owner)
        handler = chat(url, folder)

        def submit(seconds):
            edit_record(folder, batch_id=batch["id"])

        handler._sleep = submit
        handler.predict(TEXTS)
        assert paid(url) == 6


def test_others_know_about_a_batch_before_its_upload_and_not_after_a_failed_one(folder):
    jobs = BatchJobs(lambda path, body: answer("OK"))
    found = []

    def respond(path, headers, body):
        if path == "/v1/files":
            found.append(len(os.listdir(folder)))
            if len(found) == 1:
                raise ErrorResponse(413, {"error": "too large"})
        return jobs(path, body)

    with servers.serving(respond) as url:
        handler = chat(f"{url}/v1", folder)
        with pytest.raises(EndpointError, match="413"):
            handler.predict(TEXTS)
        assert os.listdir(folder) == []
        handler.predict(TEXTS)
    assert found == [1, 1]


def test_a_batch_that_the_server_does_not_know_is_submitted(folder):
    for batch_id in ("batch-unknown", None):
        with servers.llm() as url:
            handler = chat(url, folder, {"job": str(batch_id)})
            handler.predict(TEXTS)
            edit_record(folder, batch_id=batch_id, file_id="file-unknown")
            assert [each.inference.text for each in handler.predict(TEXTS)] == [
                text.upper() for text in TEXTS
            ]
            assert paid(url) == 12
        for name in os.listdir(folder):
            os.remove(os.path.join(folder, name))


def test_results_that_the_provider_has_deleted_are_requested_again(folder):
    jobs = BatchJobs(lambda path, body: answer(body["messages"][-1]["content"].upper()))
    deleted = []

    def respond(path, headers, body):
        if path in deleted:
            raise ErrorResponse(404, {"error": "no file"})
        return jobs(path, body)

    with servers.serving(respond) as url:
        handler = chat(f"{url}/v1", folder)
        handler.predict(TEXTS)
        [batch] = batches(f"{url}/v1")
        deleted.append(f"/v1/files/{batch['output_file_id']}/content")
        texts = [result.inference.text for result in handler.predict(TEXTS)]
        assert texts == [text.upper() for text in TEXTS]
        assert len(batches(f"{url}/v1")) == 2


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "empty"])
def test_an_error_file_that_is_empty_or_deleted_costs_no_results(deleted, folder):
    jobs = BatchJobs(lambda path, body: answer(body["messages"][-1]["content"].upper()))
    n_downloads = 0

    def respond(path, headers, body):
        nonlocal n_downloads
        if path == "/v1/files/errors/content":
            n_downloads += 1
            if deleted:
                raise ErrorResponse(404, {"error": "no file"})
            return b""
        response = jobs(path, body)
        if path.startswith("/v1/batches/") and response["status"] == "completed":
            response = {**response, "error_file_id": "errors"}
        return response

    with servers.serving(respond) as url:
        for _ in range(2):  # the second time, the earlier batch is found
            results = chat(f"{url}/v1", folder).predict(TEXTS)
            assert [each.inference.text for each in results] == [text.upper() for text in TEXTS]
        assert (len(batches(f"{url}/v1")), n_downloads) == (1, 2)


def test_an_output_file_that_is_empty_is_not_taken_for_a_batch_without_results(folder):
    jobs = BatchJobs(lambda path, body: answer(body["messages"][-1]["content"].upper()))
    is_broken = False

    def respond(path, headers, body):
        is_output = path.endswith("/content")
        return b"" if is_output and is_broken else jobs(path, body)

    with servers.serving(respond) as url:
        for is_broken in (False, True, False):
            _, errors = outcomes(chat(f"{url}/v1", folder, num_retries=1), TEXTS)
            assert len(errors) == (6 if is_broken else 0)
            assert all("no content" in message for _, message in errors.values())
        assert len(batches(f"{url}/v1")) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_provider_that_often_fails_is_paid_once(seed, folder):
    rng = random.Random(seed)
    calls = []

    def run_model(path, body):
        calls.append(body["messages"][-1]["content"])
        return answer(calls[-1].upper())

    faults = ["other order", "repeated line", "invalid line", "busy"]
    jobs = BatchJobs(run_model, [each for each in faults if rng.random() < 0.5], rng.randint(1, 3))

    def respond(path, headers, body):
        fault = rng.random()
        if fault < 0.15:
            raise ErrorResponse(rng.choice([429, 500, 502, 503]), {"error": "before"})
        response = jobs(path, body)
        if fault < 0.25:
            raise ErrorResponse(500, {"error": "after"})
        if fault < 0.3:
            return {"error": {"message": "overloaded", "code": "overloaded_error"}}
        return b"<html>" if fault < 0.35 else response

    texts = []
    with servers.serving(respond) as url:
        for _ in range(50):  # a job that fails is started again
            if texts:
                break
            handler = chat(f"{url}/v1", folder, {"max_requests": rng.choice([4, 50])})
            with contextlib.suppress(EndpointError):
                texts = [result.inference.text for result in handler.predict(TEXTS)]
    assert texts == [text.upper() for text in TEXTS]
    assert sorted(calls) == TEXTS


def test_threads_that_send_the_same_requests_share_a_batch(folder):
    with servers.llm(batch_polls=3) as url:
        handler = chat(url, folder)
        threads = [threading.Thread(target=handler.predict, args=[TEXTS]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (paid(url), len(batches(url))) == (6, 1)


def test_an_unreadable_record_or_folder_stops_the_job_instead_of_paying_again(folder):
    with servers.llm() as url:
        chat(url, folder).predict(TEXTS)
        [name] = os.listdir(folder)
        with open(os.path.join(folder, name), "w") as file:
            file.write("{")
        with pytest.raises(OptionError, match="The record of a batch, .* can't be read"):
            chat(url, folder).predict(TEXTS)
        with open(os.path.join(folder, name), "w") as file:
            json.dump({"name": "other", "request_ids": None, "file_id": ""}, file)
        with pytest.raises(OptionError, match="The record of a batch, .* can't be read"):
            chat(url, folder).predict(TEXTS)
        with pytest.raises(OptionError, match="The folder of the batch API"):
            chat(url, "unknown-scheme://folder").predict(TEXTS)
        with pytest.raises(OptionError, match="can't be written"):
            chat(url, os.path.join(folder, name)).predict(TEXTS)
        assert paid(url) == 6


# --- batches and lines that fail


FAILURES = [
    # fault, elements that fail, part of the message, requests paid for after a second run
    ("expired", 3, "The batch was expired", 4),
    ("cancelled", 3, "The batch was cancelled", 4),
    (
        "failed",
        6,
        "has the status failed, and didn't process this request: Enqueued token limit",
        0,
    ),
    ("failed line", 1, "returned 400: The request is not valid", 5),
    ("lost line", 1, "is completed, but has no valid result for this request", 7),
    ("lost batch", 6, "returned 404: There is no batch", 6),
]


@pytest.mark.parametrize(
    ("fault", "n_failed", "message", "n_paid"), FAILURES, ids=[each[0] for each in FAILURES]
)
def test_requests_without_a_result_are_dead_letters(fault, n_failed, message, n_paid, folder):
    with servers.llm(batch_faults=[fault]) as url:
        results, errors = outcomes(chat(url, folder), TEXTS)
        assert len(errors) == n_failed
        check_results(results, set(TEXTS) - errors.keys())
        for kind, text in errors.values():
            assert issubclass(kind, EndpointError)
            assert message in text
        # The dead letters can be run again, and the others aren't paid for again.
        outcomes(chat(url, folder), TEXTS)
        assert paid(url) == n_paid


def test_an_expired_batch_can_be_completed_live(folder):
    with servers.llm(batch_faults=["expired"]) as url:
        results, errors = outcomes(chat(url, folder, {"after_deadline": "live"}), TEXTS)
        check_results(results, TEXTS)
        assert (paid(url), len(batches(url)), errors) == (6, 1, {})


@pytest.mark.parametrize("fault", ["cancelled", "failed"])
def test_a_batch_that_someone_cancels_or_the_provider_rejects_is_not_completed_live(fault, folder):
    with servers.llm(batch_faults=[fault]) as url:
        _, errors = outcomes(chat(url, folder, {"after_deadline": "live"}), TEXTS)
        assert errors
        assert paid(url) + len(errors) == 6


@pytest.mark.parametrize("after_deadline", ["live", "dead letter"])
def test_a_batch_is_canceled_at_the_deadline_before_requests_are_sent_live(after_deadline, folder):
    batch = {"deadline_secs": 0.05, "after_deadline": after_deadline}
    with servers.llm(batch_faults=["stuck"]) as url:
        results, errors = outcomes(chat(url, folder, batch), TEXTS)
        [status] = [each["status"] for each in batches(url)]
        n_failed = 0 if after_deadline == "live" else 3
        assert (status, paid(url), len(errors)) == ("cancelled", 6 - n_failed, n_failed)
        check_results(results, set(TEXTS) - errors.keys())


def test_if_the_server_is_unavailable_after_the_deadline_the_other_requests_are_not_sent(folder):
    batch = {"after_deadline": "live"}
    refused = []

    def respond(body):
        refused.append(body)
        return {"error": {"message": "no", "code": "invalid_api_key"}}

    with servers.llm(batch_faults=["expired"]) as url, scripted_server(default=respond) as server:
        handler = chat(url, folder, batch, max_concurrent_requests=1)
        client = handler.create_client()
        live = OpenAIChatModelHandler(server.url, "shout", None).create_client()
        post = client.post
        client.post = lambda path, body, parse: (live.post if "chat" in path else post)(
            path, body, parse
        )
        parts = handler.run_in_parts(TEXTS, client, None)
    assert [type(part.error) for part in parts[3:]] == [EndpointRefusedError] * 3
    assert len(refused) == 1


def test_bad_elements_are_not_sent(folder):
    with servers.llm() as url:
        results, errors = outcomes(chat(url, folder), [*TEXTS, 5])
        check_results(results, TEXTS)
        assert errors[5][0] is ElementError
        assert paid(url) == 6
        # The error of the sample server for a text that is too long
        _, errors = outcomes(chat(url, folder), ["word " * 200])
        [(_, message)] = errors.values()
        assert "The context size is 100 words" in message


def test_all_elements_fail_if_the_server_rejects_the_key(folder):
    with servers.llm(key="sk-another-key") as url:
        _, errors = outcomes(chat(url, folder), TEXTS)
    assert {kind for kind, _ in errors.values()} == {EndpointRefusedError}
    assert len(errors) == 6


# --- with other options


def test_typed_answers_are_validated_and_asked_for_again_without_the_batch_api(folder):
    with servers.llm() as url:
        handler = chat(url, folder, output_type=Literal["good", "bad"])
        values = [each.inference for each in handler.predict(["so good", "too bad"])]
        assert (values, paid(url), len(batches(url))) == (["good", "bad"], 2, 1)

    jobs = BatchJobs(lambda path, body: answer("perhaps"))
    with servers.serving(
        lambda path, headers, body: jobs(path, body) or answer('{"value": "good"}')
    ) as url:
        options = {"output_type": Literal["good", "bad"]}
        assert chat(f"{url}/v1", folder, **options).predict(["?"])[0].inference == "good"
        with pytest.raises(InvalidOutputError, match="perhaps"):
            chat(f"{url}/v1", folder, max_output_attempts=1, **options).predict(["?"])


def count(handler, elements):
    """Return the counters of a pipeline whose failures are dead letters."""
    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create(elements) | RunInference(handler).with_exception_handling()
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    return {each.key.metric.name: each.committed for each in counters}


def test_limits_apply_before_a_batch_is_submitted(folder):
    prices = Prices(input=1_000_000, output=1_000_000, batch_factor=0.5)
    with servers.llm() as url:
        handler = chat(url, folder, prices=prices, max_cost=5, parameters={"max_tokens": 1})
        results, errors = outcomes(handler, TEXTS)
        assert {kind for kind, _ in errors.values()} == {NotCalledError}
        assert 0 < len(results) == paid(url) < 6
        failed = [*errors, *errors]
        assert count(handler, failed)["not_called"] == len(failed)
        assert paid(url) == len(results)


def test_metrics_count_each_token_of_a_batch_once(folder):
    with servers.llm() as url:
        handler = chat(url, folder, prices=Prices(input=1, output=1, batch_factor=0.5))
        found = count(handler, ["one two", "one two", "three four"])
    assert (found["total_tokens"], found["cost_micros"], found["num_inferences"]) == (8, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": ""}, "BatchApi: folder must be a path"),
        ({"poll_secs": 0}, "BatchApi: poll_secs must be greater than 0"),
        ({"deadline_secs": "1h"}, "BatchApi: deadline_secs must be a number"),
        ({"after_deadline": "alive"}, "must be 'dead letter' or 'live', .* Did you mean 'live'"),
        ({"job": 5}, "BatchApi: job must be a string"),
        ({"completion_window": ""}, "BatchApi: completion_window must be a non-empty string"),
        ({"max_requests": 0}, "BatchApi: max_requests must be at least 1"),
        ({"max_file_bytes": 0.5}, "BatchApi: max_file_bytes must be an integer"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(OptionError, match=message):
        BatchApi(**{"folder": "f", **options})


def test_options_of_the_handler_that_cannot_work_raise(folder):
    batch_api = BatchApi(folder)
    with pytest.raises(OptionError, match="add max_tokens or max_completion_tokens"):
        chat("http://localhost", folder, max_tokens_total=50)
    with pytest.raises(OptionError, match="batch_api must be a BatchApi"):
        OpenAIChatModelHandler("http://localhost", "m", None, batch_api=folder)
    with pytest.raises(OptionError, match="a request contains one example"):
        OpenAIEmbeddingsModelHandler(
            "http://localhost", "m", None, batch_api=batch_api, max_request_size=8
        )
