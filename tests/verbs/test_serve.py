"""`m1 serve` as a process: its answers, its end, and what it refuses."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess

import httpx
import pytest

from m1jax.verbs import main
from tests.serve.served import client_of
from tests.verbs.conftest import PROGRAM
from tests.verbs.test_generation import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = export(tmp_path_factory.mktemp("served") / "model", max_positions=2048)
    (found / "README.md").write_text("---\nlicense: mit\n---\n# A card\nRead about asthma.\n")
    return found


@contextlib.contextmanager
def process(folder, *arguments, log=None):
    command = [*PROGRAM, "serve", "--model", str(folder), "--port", "0", "--no-warm-up", *arguments]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(open(log, "w")) if log else subprocess.PIPE
        running = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True))
        try:
            said = running.stdout.readline()
            yield running, re.search(r"http://\S+", said)[0], said
        finally:
            running.kill()


@pytest.mark.slow
def test_a_process_answers_and_ends_in_order(folder, tmp_path):
    """SIGTERM while an answer is written: it is finished, nobody else is let in, and the exit status is 0.

    The log is a full disk, which stops nothing.
    """
    (tmp_path / "keys").write_text("one\ntwo\n")
    arguments = ["--api-key-file", str(tmp_path / "keys"), "--max-batch", "2", "--cache-gib", "0.1"]
    with process(folder, *arguments, log="/dev/full") as (running, address, said):
        assert said.startswith("model is served at http://127.0.0.1:") and "a context of 2048 tokens" in said
        with client_of(address, api_key="two") as client:
            settings = {"model": "model", "temperature": 0, "extra_body": {"ignore_eos": True}}
            expected = client.completions.create(prompt="Asthma", max_tokens=1500, **settings).choices[0].text
            stream = client.completions.create(prompt="Asthma", max_tokens=1500, stream=True, **settings)
            text = next(stream).choices[0].text
            running.send_signal(signal.SIGTERM)
            text += "".join(event.choices[0].text for event in stream)
            assert text == expected
        assert running.wait(timeout=30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


@pytest.mark.slow
def test_many_processes_worth_of_clients_and_the_card(folder):
    with process(folder, "--name", "asthma", "--log-text") as (running, address, _):
        assert httpx.get(f"{address}/card").json()["card"] == "# A card\nRead about asthma."
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "seed": 1}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda _: httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60), range(16))
            )
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
        running.send_signal(signal.SIGINT)
        _, log = running.communicate(timeout=30)
        assert running.returncode == 0
    assert "Traceback" not in log and log.count('"answers"') == 16
    assert json.loads(log[log.index('{"prompts"') :].splitlines()[0])["prompts"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "cannot listen at 127.0.0.1 port 99999"),
        (["--host", "203.0.113.7"], "cannot listen at 203.0.113.7"),
        (["--cache-gib", "0"], "--cache-gib must be above 0"),
        (["--timeout", "nan"], "--timeout must be above 0"),
        (["--context", "5000"], "context must be from 1 to the model's 2048"),
        (["--cache-gib", "1e-6"], "holds no request"),
        (["--max-batch", "0"], "must be at least 1"),
        (["--chat-format", "Alpaca"], "'Alpaca' is unknown"),
        (["--api-key-file", "EMPTY"], "holds no API key"),
        (["--api-key-file", "nowhere"], "nowhere: No such file"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(folder, tmp_path, capsys, arguments, sentence):
    (tmp_path / "empty").write_text("\n")
    arguments = [str(tmp_path / "empty") if word == "EMPTY" else word for word in arguments]
    assert main(["serve", "--model", str(folder), "--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_model_without_a_tokenizer_is_refused(folder, tmp_path, capsys):
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            os.link(path, tmp_path / path.name)
    assert main(["serve", "--model", str(tmp_path), "--port", "0"]) == 2
    assert "holds no tokenizer.json" in capsys.readouterr().err
