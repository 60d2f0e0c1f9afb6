"""The sample servers implement their protocols, tested with the OpenAI client and httpx."""

from __future__ import annotations

import threading

import httpx
import openai
import pytest

from runinference.samples import servers


def test_llm_works_with_the_openai_client():
    with servers.llm(key="k") as url:
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        chat = client.chat.completions.create(
            model="shout", messages=[{"role": "user", "content": "is it you"}]
        )
        assert chat.choices[0].message.content == "IS IT YOU"
        assert chat.usage.total_tokens == 6
        completion = client.completions.create(model="shout", prompt=["a", "b"])
        assert [choice.text for choice in completion.choices] == ["A", "B"]
        vectors = client.embeddings.create(
            model="words", input=["a b", "c"], encoding_format="float"
        )
        assert [len(each.embedding) for each in vectors.data] == [64, 64]
        [encoded] = client.embeddings.create(model="words", input="a b").data  # as base64
        assert encoded.embedding == pytest.approx(vectors.data[0].embedding)
        parts = [{"type": "text", "text": "is "}, {"type": "text", "text": "it"}]
        chat = client.chat.completions.create(
            model="shout", messages=[{"role": "user", "content": parts}]
        )
        assert chat.choices[0].message.content == "IS IT"
        with pytest.raises(openai.NotFoundError, match="'gpt' does not exist"):
            client.embeddings.create(model="gpt", input="a")
        with pytest.raises(
            openai.BadRequestError, match="size is 100 words, and the request has 103"
        ):
            client.completions.create(model="shout", prompt="word " * 103)
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            client.with_options(api_key="other").embeddings.create(model="words", input="a")


def test_llm_returns_the_given_errors_first():
    with servers.llm(troubles=[429, 503], retry_after=2) as url:
        body = {"model": "words", "input": "a"}
        answers = [httpx.post(f"{url}/embeddings", json=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 503, 200]
    assert answers[0].headers["Retry-After"] == "2"


def test_servers_reject_invalid_requests():
    with servers.llm() as url, servers.digits() as digits:
        assert httpx.post(f"{url}/embeddings", content=b"{").status_code == 400
        assert httpx.post(f"{url}/embeddings", json=[]).status_code == 400
        assert httpx.post(f"{url}/chat/completions", json={"model": "shout"}).status_code == 400
        assert httpx.get(f"{url}/models").status_code == 404
        assert httpx.post(f"{digits}/predictions/digits", json="x").status_code == 400
        assert (
            httpx.post(f"{digits}/v2/models/digits/infer", json={"inputs": []}).status_code == 400
        )
        assert httpx.get(f"{digits}/v2/models/digits").status_code == 200
        for body in (b'{"instances": [[NaN]]}', b"[" * 100_000, b"\xff"):
            url_of_model = f"{digits}/v1/models/digits:predict"
            assert httpx.post(url_of_model, content=body).status_code == 400
        several = {"model": "shout", "n": 2, "messages": [{"role": "user", "content": "a"}]}
        assert httpx.post(f"{url}/chat/completions", json=several).status_code == 400


def test_a_server_never_sends_nan():
    with servers.serving(lambda path, headers, body: [float("nan")]) as url:
        answer = httpx.get(url)
    assert (answer.status_code, "not JSON" in answer.json()["error"]) == (500, True)


def test_a_server_stops_at_the_end_of_its_block():
    before = threading.active_count()
    with servers.llm() as url:
        pass
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"{url}/embeddings", json={})
    assert threading.active_count() <= before
