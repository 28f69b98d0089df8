"""Clients that hang up, ask for nonsense or too much: right answers for everybody else, and one sentence for them."""

import concurrent.futures
import contextlib
import json
import logging
import socket
import threading
import time

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.serve.asked import chat, completion
from m1jax.serve.body import Body
from m1jax.serve.errors import RequestError
from tests.serve.served import NAME, client_of, language_model, running, served, tokenizer, until


@pytest.fixture(scope="module")
def server():
    with running({"max_batch": 8}, max_body=20_000, max_waiting=200, body_timeout=0.5) as found:
        yield found


def schema_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


SERVED = served()
GOOD = {"prompt": "Asthma", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "Asthma?"}], "max_tokens": 2}
BAD = [
    ({"prompt": ""}, "a prompt is empty"),
    ({"prompt": []}, "prompt must be a string"),
    ({"prompt": 7}, "prompt must be a string"),
    ({"prompt": [["a"]]}, "prompt must be a string"),
    ({"prompt": [[1, -1]]}, "outside the vocabulary"),
    ({"prompt": [10**9]}, "outside the vocabulary"),
    ({"prompt": "a" * 5000}, "tokens, the context holds 512"),
    ({"prompt": "\ud800"}, "half of a surrogate pair"),
    ({"prompt": ["a"] * 129}, "at most 128 prompts"),
    ({"n": 129}, "n must be a whole number from 1 to 128"),
    ({"prompt": ["a"] * 3, "n": 100}, "at most 128 choices"),
    ({"max_tokens": -1}, "max_tokens must be a whole number"),
    ({"max_tokens": 512}, "shorten the prompt or ask for fewer"),
    ({"max_tokens": 10**6}, "max_tokens must be at most 512"),
    ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
    ({"temperature": 2.5}, "temperature must be a number from 0 up to 2"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"temperature": True}, "temperature must be a number"),
    ({"top_p": 0}, "top_p must be a number above 0"),
    ({"min_p": 2}, "min_p must be a number from 0"),
    ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
    ({"presence_penalty": 3}, "presence_penalty must be a number from -2 up to 2"),
    ({"logit_bias": {"x": 1}}, "which is no token id"),
    ({"logit_bias": {"100000": 1}}, "which is no token id"),
    ({"logit_bias": {"5": 101}}, "must be a number from -100 up to 100"),
    ({"logit_bias": [1]}, "logit_bias must be an object"),
    ({"seed": 1 << 63}, "seed must be a whole number"),
    ({"logprobs": 21}, "logprobs must be a whole number from 0 to 20"),
    ({"stop": ["x"] * 1000}, "stop may have at most 16 strings"),
    ({"stop": [""]}, "none empty"),
    ({"stop": "x" * 1001}, "at most 1000 characters"),
    ({"stop_token_ids": list(range(20))}, "more than 16"),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"stream_options": 5}, "stream_options must be an object"),
    ({"best_of": 4}, "best_of is not supported"),
    ({"suffix": "end"}, "suffix is not supported"),
    ({"temprature": 0.5}, "did you mean temperature?"),
]
BAD_CHATS = [
    ({"messages": []}, "messages must be a list"),
    ({"messages": ["hello"]}, r"messages[0] must be an object"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role must be one of"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "may hold text parts only"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "tool_calls is not supported"),
    ({"tools": [{"type": "function"}]}, "tools is not supported"),
    ({"tool_choice": "required"}, "tool_choice is not supported"),
    ({"response_format": "json"}, "response_format must have the type"),
    ({"response_format": {"type": "xml"}}, "response_format must have the type"),
    ({"response_format": {"type": "json_schema"}}, "must be an object with a schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "must be an object with a schema"),
    ({"response_format": schema_of("x")}, "it must be an object"),
    ({"response_format": schema_of({"type": "nothing"})}, "the schema of response_format is not usable"),
    ({"response_format": schema_of({"not": {"type": "string"}})}, "the schema of response_format is not usable"),
    ({"response_format": schema_of({"$ref": "https://example.org/a.json"})}, "response_format is not usable"),
    ({"modalities": ["audio"]}, 'modalities must be ["text"]'),
    ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
    ({"messages": [{"role": "user", "content": "long " * 900}]}, "the context holds 512"),
]


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [("completions", GOOD | bad, sentence) for bad, sentence in BAD]
    + [("chat/completions", CHAT | bad, sentence) for bad, sentence in BAD_CHATS],
)
def test_what_is_wrong_is_one_sentence(server, path, body, sentence):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server[0]}/v1/{path}", content=json.dumps(body), headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert sentence in error["message"] and error["type"] == "invalid_request_error"
    assert "Traceback" not in answer.text and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the body is not JSON"),
        (b"{'a': 1}", "the body is not JSON"),
        (b'{"prompt": "\x01"}', "the body is not JSON"),
        (b'{"temperature": NaN}', "the body is not JSON"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "the body is not JSON"),
        (b"[" * 15000, "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[1]", "must be a JSON object"),
    ],
)
def test_what_is_no_json_is_told(server, content, sentence):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server[0]}/v1/completions", content=content, headers=headers)
    assert (answer.status_code, sentence in answer.json()["error"]["message"]) == (400, True)


def test_other_refusals_have_their_status(server):
    address, _ = server
    post, headers = httpx.post, {"Content-Type": "application/json"}
    many = post(f"{address}/v1/completions", content=b'{"stop": ["' + b'", "'.join([b"x"] * 10_000), headers=headers)
    assert (many.status_code, "more than 20000 bytes" in many.json()["error"]["message"]) == (413, True)
    assert post(f"{address}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert post(f"{address}/v1/completions", json={**GOOD, "model": "gpt-4"}).json()["error"]["code"] == (
        "model_not_found"
    )
    for path in ("responses", "embeddings", "images/generations"):
        refused = post(f"{address}/v1/{path}", json={})
        assert refused.status_code == 404 and f"/v1/{path} is not supported" in refused.json()["error"]["message"]
    assert "there is no such path" in httpx.get(f"{address}/v2").json()["error"]["message"]
    assert httpx.get(f"{address}/v1/completions").status_code == 405
    for body in ({}, {"prompt": "a", "messages": []}, {"prompt": 5}):
        assert post(f"{address}/tokenize", json=body).status_code == 400
    assert post(f"{address}/detokenize", json={"tokens": ["a"]}).status_code == 400


def test_a_body_that_does_not_come_is_not_waited_for(server):
    port = int(server[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_reader_that_does_not_read_holds_nobody_up(server):
    address, served = server
    body = json.dumps({"prompt": "Asthma", "max_tokens": 500, "ignore_eos": True, "stream": True, "logprobs": 20})
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        before = served.engine.counts.requests
        until(lambda: served.engine.counts.requests > before or served.engine.running)
        assert httpx.post(f"{address}/v1/completions", json=GOOD, timeout=60).status_code == 200
        until(lambda: served.engine.running == served.engine.waiting == 0)


def test_clients_that_hang_up_change_nobodys_answer(server):
    """60 clients, a third of which go away midway: the others' texts are those of the model alone."""
    address, served = server
    prompts = [f"Asthma {'is a disease ' * (number % 7)}{number}" for number in range(60)]
    expected = {}
    for prompt in prompts[::3] + prompts[1::3]:
        ids = tokenizer().encode(prompt)
        expected[prompt] = tokenizer().decode(language_model().generate(ids, 24), before=ids)

    def ask(number):
        count = 400 if number % 3 == 2 else 24  # those that go away would have long to wait
        body = {"prompt": prompts[number], "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
        text = ""
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if number % 3 == 2 and (number % 2 or text):
                    return None  # some before the first token, some after it
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text

    before = served.engine.counts.cancelled
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        found = list(pool.map(ask, range(60)))
    for number, text in enumerate(found):
        assert text == (None if number % 3 == 2 else expected[prompts[number]])
    until(lambda: served.engine.running == served.engine.waiting == 0)
    assert served.engine.counts.cancelled > before


def slow(served, monkeypatch):
    """Lets every round take as long as one of a large model does."""
    real = served.engine._generate

    def generate():
        time.sleep(0.1)
        real()

    monkeypatch.setattr(served.engine, "_generate", generate)


def test_a_whole_answer_that_nobody_waits_for_frees_its_place(server, monkeypatch):
    address, served = server
    slow(served, monkeypatch)
    before = served.engine.counts.cancelled
    body = {"prompt": "Asthma", "max_tokens": 500, "ignore_eos": True, "n": 4}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/completions", json=body, timeout=0.2)
    until(lambda: served.engine.running == served.engine.waiting == 0)
    assert served.engine.counts.cancelled == before + 4


def test_a_full_queue_says_when_to_come_again(monkeypatch):
    with running({"max_batch": 1}, max_waiting=2) as (address, served):
        slow(served, monkeypatch)
        long = {"prompt": "Asthma", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with concurrent.futures.ThreadPoolExecutor(3) as pool, httpx.Client(timeout=60) as client:
            first = [client.send(client.build_request("POST", f"{address}/v1/completions", json=long), stream=True)]
            until(lambda: served.engine.running == 1)
            others = [pool.submit(httpx.post, f"{address}/v1/completions", json=GOOD, timeout=60) for _ in range(2)]
            until(lambda: served.engine.waiting == 2)
            refused = httpx.post(f"{address}/v1/completions", json=GOOD)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            first[0].close()
            assert [other.result().status_code for other in others] == [200, 200]


def test_an_answer_that_takes_too_long_is_ended(monkeypatch):
    with running(timeout=0.3) as (address, what):
        slow(what, monkeypatch)
        body = {"prompt": "Asthma", "max_tokens": 500, "ignore_eos": True}
        whole = httpx.post(f"{address}/v1/completions", json=body, timeout=60)
        assert whole.status_code == 504 and whole.json()["error"]["type"] == "timeout_error"
        streamed = httpx.post(f"{address}/v1/completions", json={**body, "stream": True}, timeout=60)
        assert "took longer than 0.3 seconds" in streamed.text.split("\n\n")[-2]
        until(lambda: what.engine.running == 0)


def test_a_key_opens_and_the_log_holds_no_text(caplog):
    caplog.set_level(logging.INFO)
    with running(api_keys=("first", "second")) as (address, _):
        for key in ("none", "firs", "Первый"):
            answer = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(address).status_code == httpx.get(f"{address}/health").status_code == 200
        with client_of(address, api_key="second") as client:
            found = client.completions.create(model=NAME, prompt="disease of the airways", max_tokens=20)
    assert "/v1/completions 200" in caplog.text and "20 tokens, length" in caplog.text
    assert "airways" not in caplog.text and found.choices[0].text not in caplog.text
    caplog.clear()
    with running(log_text=True) as (address, _):
        httpx.post(f"{address}/v1/completions", json={"prompt": "disease\n\x1b[2Jairways", "max_tokens": 3})
    assert r"disease\n\u001b[2Jairways" in caplog.text


def test_other_names_for_this_machine_are_refused():
    with running(hosts=("127.0.0.1", "::1")) as (address, _):
        assert httpx.get(f"{address}/health").status_code == 200
        refused = httpx.get(address, headers={"Host": "evil.example:80"})
        assert refused.status_code == 403 and refused.json()["error"]["type"] == "permission_error"
        assert httpx.get(address, headers={"Host": "[::1]:8000"}).status_code == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "prompt", "messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "stop_token_ids",
    "stream", "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs", "suffix", "tools", "tool_choice",
    "response_format", "modalities", "user", "ignore_eos", "role", "content",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.sampled_from([(completion, GOOD), (chat, CHAT)])
)
def test_any_values_are_taken_or_refused_in_one_sentence(fields, kind):
    read, good = kind
    try:
        found = read(Body({**good, **fields}), SERVED)
    except RequestError as error:
        assert error.status in (400, 404) and error.message.endswith((".", "?")) and "\n" not in json.dumps(error.body)
        return
    for request in found.requests:
        with contextlib.suppress(UserError):  # more tokens than the context: told when they are handed over
            SERVED.engine.check(request)


def test_a_failing_device_is_an_error_without_a_traceback(monkeypatch, caplog):
    with running() as (address, served), client_of(address) as client:
        real, fails = served.engine._generate, threading.Event()

        def generate():
            if fails.is_set():
                raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nwith details")
            real()

        monkeypatch.setattr(served.engine, "_generate", generate)
        fails.set()
        with pytest.raises(openai.InternalServerError, match="failed to compute this answer"):
            client.completions.create(model=NAME, prompt="Asthma", max_tokens=4)
        with pytest.raises(openai.APIError, match="failed to compute this answer"):
            list(client.completions.create(model=NAME, prompt="Asthma", max_tokens=4, stream=True))
        fails.clear()
        assert client.completions.create(model=NAME, prompt="Asthma", max_tokens=4).choices[0].text
    assert "RESOURCE_EXHAUSTED" in caplog.text and "Traceback" not in caplog.text
