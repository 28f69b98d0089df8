"""The client of the OpenAI protocol, against a small server in this process."""

import contextlib
import json

import pytest

from m1jax.client import Client, key_of
from m1jax.errors import UserError
from tests.chat_server import running, said

MESSAGES = [{"role": "user", "content": "How many lobes has the left lung? 肺"}]


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:
        yield lambda respond: stack.enter_context(running(respond))


def test_a_request_is_that_of_the_protocol_and_is_kept(tmp_path, serve):
    server = serve(lambda request, _: said("Two 两"))
    log = tmp_path / "deep" / "log.jsonl"
    client = Client(server.address, "teacher", log, key="secret")
    assert client.ask(MESSAGES, temperature=0.5) == "Two 两"
    path, headers, request = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert request == {"model": "teacher", "messages": MESSAGES, "temperature": 0.5}
    text = log.read_text(encoding="utf-8")
    assert json.loads(text)["request"] == request
    assert json.loads(text)["answer"] == "Two 两"
    assert "secret" not in text


def test_what_the_log_holds_is_not_asked_again(tmp_path, serve):
    server = serve(lambda request, number: said(f"answer {number}"))
    log = tmp_path / "log.jsonl"
    assert Client(server.address, "teacher", log).ask(MESSAGES) == "answer 1"
    with open(log, "ab") as file:  # a process was killed while it wrote
        file.write(b'{"key": "half')
    again = Client(server.address, "teacher", log)
    assert again.ask(MESSAGES) == "answer 1"
    assert again.sent == 0
    assert again.ask(MESSAGES, temperature=1.0) == "answer 2"
    assert Client(server.address, "other", log).ask(MESSAGES) == "answer 3"
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 3


def test_a_busy_server_is_asked_again_after_a_pause(tmp_path, serve):
    def respond(request, number):
        return [(429, {"Retry-After": "7"}, b"slow down"), (503, {}, b""), said("at last")][number - 1]

    pauses = []
    client = Client(serve(respond).address, "teacher", tmp_path / "log", pause=pauses.append)
    assert client.ask(MESSAGES) == "at last"
    assert pauses == [7.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, {}, b"bad key"), r"refused a request with status 401 \(bad key\): check address, model and key"),
        ((200, {}, b"<html>"), r"answered with something else than the OpenAI protocol \(<html>\)"),
        ((200, {}, b'{"choices": []}'), "answered with something else"),
        ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), "answered with something else"),
        ((500, {}, b"oh"), r"did not answer 6 times, at last with status 500 \(oh\)"),
    ],
)
def test_what_a_server_does_wrong_is_one_sentence(tmp_path, serve, answer, error):
    client = Client(serve(lambda *_: answer).address, "m", tmp_path / "log", pause=lambda _: None)
    with pytest.raises(UserError, match=error):
        client.ask(MESSAGES)
    assert not (tmp_path / "log").exists()


def test_wrong_addresses_keys_and_logs_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="the address 'localhost' is none"):
        Client("localhost", "m", tmp_path / "log")
    with pytest.raises(UserError, match="did not answer 6 times"):
        Client("http://127.0.0.1:9", "m", tmp_path / "log", pause=lambda _: None).ask(MESSAGES)
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        key_of("MY_KEY")
    assert key_of(None) == ""
    (tmp_path / "log").write_text("{\nnothing\n")
    with pytest.raises(UserError, match="is damaged in line 1"):
        Client("http://x", "m", tmp_path / "log")
