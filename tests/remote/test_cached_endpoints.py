"""The cache keys of endpoints with credentials, local servers and generations contain the options that matter."""

from __future__ import annotations

from runinference.openai_inference import OpenAIChatModelHandler
from scripted_server import scripted_server


def answer(body):
    message = {"content": "true"}
    return {"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": 3}}


def test_the_query_is_part_of_the_cache_key_but_credentials_are_not(tmp_path):
    with scripted_server(default=answer) as server:

        def call(**options):
            handler = OpenAIChatModelHandler(server.url, "m", **options)
            return handler.with_cache(str(tmp_path)).predict(["hi"])[0].inference

        assert call(auth=lambda: "one").text == call(auth=lambda: "two").text == "true"
        assert len(server.requests) == 1
        call(auth=lambda: "one", query={"api-version": "2"})
        assert len(server.requests) == 2
        for _ in range(2):
            found = call(auth=lambda: "one", output_type=bool, keep_generation=True)
            assert (found.value, found.usage) == (True, {"total_tokens": 3})
        assert call(auth=lambda: "one", output_type=bool) is True
        assert len(server.requests) == 4


def test_limits_are_not_part_of_the_cache_key(tmp_path):
    limits = [{}, {"max_tokens_total": 100}, {"max_tokens_per_minute": 1_000}, {"num_retries": 0}]
    with scripted_server(default=answer) as server:
        for options in limits:
            handler = OpenAIChatModelHandler(server.url, "m", api_key_env=None, **options)
            handler.with_cache(str(tmp_path)).predict(["hi"])
        assert len(server.requests) == 1
