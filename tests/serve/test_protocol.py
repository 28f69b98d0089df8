"""The OpenAI protocol by OpenAI's own client and by plain HTTP, on a small model."""

import json
import pathlib
import re

import httpx
import jax
import numpy as np
import openai
import pytest

from m1jax.serve.answering import _event
from tests.serve.served import NAME, TEXT, client_of, language_model, running, tokenizer

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def address():
    with running() as (found, _):
        yield found


@pytest.fixture(scope="module")
def client(address):
    with client_of(address) as found:
        yield found


def said(ids, count):
    return tokenizer().decode(language_model().generate(ids, count, eos_id=tokenizer().eos_id), before=ids)


def test_the_guides_python_runs_as_it_stands(address, capsys):
    client, parsing, engine = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    exec(compile(client.replace("http://127.0.0.1:8000", address), "serving.md", "exec"), names)
    assert "[None, -" in capsys.readouterr().out
    exec(compile(parsing, "serving.md", "exec"), names)
    assert re.fullmatch(r"organ='(lungs|heart|skin)' chronic=(True|False)\n", capsys.readouterr().out)
    exec(compile(engine, "serving.md", "exec"), {"model": language_model(), "tokenizer": tokenizer()})
    assert capsys.readouterr().out.strip()


def test_models_and_health(address, client):
    (only,) = client.models.list().data
    assert (only.id, only.owned_by, only.max_model_len) == (NAME, "m1jax", 512)
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.models.retrieve("gpt-4")
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_prompts_of_all_four_forms_give_the_models_own_text(client):
    text, ids = "Asthma is", tokenizer().encode("Asthma is")
    expected = said(ids, 12)
    for prompt, choices in ((text, 1), ([text, text], 2), (ids, 1), ([ids, ids], 2)):
        found = client.completions.create(model=NAME, prompt=prompt, max_tokens=12, temperature=0)
        assert [(one.index, one.text) for one in found.choices] == [(i, expected) for i in range(choices)]
        assert found.usage.prompt_tokens == choices * len(ids)
        assert found.usage.completion_tokens == choices * 12
        assert {one.finish_reason for one in found.choices} == {"length"}
    echoed = client.completions.create(model=NAME, prompt=text, max_tokens=3, temperature=0, echo=True)
    assert echoed.choices[0].text == text + said(ids, 3)


def test_a_chat_uses_the_models_format_and_streams_the_same_text(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is asthma "}, {"type": "text", "text": "a disease?"}]},
    ]
    settings = {"model": NAME, "messages": messages, "max_completion_tokens": 30, "seed": 5, "temperature": 1.3}
    whole = client.chat.completions.create(**settings, n=2)
    assert len({choice.message.content for choice in whole.choices}) == 2
    assert whole.choices[0].message.role == "assistant"
    ids = [71, *tokenizer().encode("Be brief."), 73, *tokenizer().encode("Is asthma a disease?"), 74]
    assert whole.usage.prompt_tokens == len(ids)
    assert client.chat.completions.create(**settings, n=2).choices == whole.choices, "the same seed says the same"
    texts, reasons, usage = ["", ""], [None, None], None
    for event in client.chat.completions.create(**settings, n=2, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
            assert "�" not in (choice.delta.content or "") or "�" in whole.choices[choice.index].message.content
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == len(ids)


def test_characters_of_several_tokens_come_whole(address):
    """A bias makes the model write Chinese, whose characters are several tokens here."""
    word = "Ω"  # not in the training text: two byte tokens
    first, second = tokenizer().encode(word)
    body = {"prompt": "Asthma", "temperature": 0, "max_tokens": 9, "stream": True}
    # Both byte tokens are the likeliest by far, and each lowers itself, so that they alternate.
    body |= {"logit_bias": {str(first): 100, str(second): 99}, "frequency_penalty": 2}
    pieces = []
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                pieces += [choice["text"] for choice in json.loads(line[6:])["choices"]]
    assert "".join(pieces).count(word) >= 3
    assert "�" not in "".join(pieces[:-1])


def test_log_probabilities_as_evaluation_tools_read_them(client):
    """What lm-eval's local-completions does: echo, logprobs 1, max_tokens 0 or 1, prompts as ids."""
    prompt = tokenizer().encode("Asthma is a disease of the airways.")
    model = language_model()
    expected = np.asarray(jax.nn.log_softmax(model(np.asarray(prompt))))
    for new in (0, 1):
        settings = {"model": NAME, "temperature": 0, "max_tokens": new, "logprobs": 1, "echo": True, "seed": 1234}
        found = client.completions.create(prompt=[prompt, prompt[:5]], **settings)
        for choice, ids in zip(found.choices, (prompt, prompt[:5]), strict=True):
            told = choice.logprobs
            assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
            log_p = told.token_logprobs[1 : len(ids)]
            wanted = expected[np.arange(len(ids) - 1), ids[1:]]
            np.testing.assert_allclose(log_p, wanted, atol=1e-4)
            assert len(told.tokens) == len(told.text_offset) == len(told.top_logprobs) == len(ids) + new
            greedy = [
                value == max(top.values()) for value, top in zip(log_p, told.top_logprobs[1 : len(ids)], strict=True)
            ]
            assert greedy == (expected[: len(ids) - 1].argmax(axis=1) == ids[1:]).tolist()
            assert choice.text.startswith(tokenizer().decode(ids))
            for token, offset in list(zip(told.tokens, told.text_offset, strict=True))[: len(ids)]:
                assert choice.text[offset:].startswith(token)


def test_log_probabilities_of_a_chat(client):
    messages = [{"role": "user", "content": "哮喘?"}]
    settings = {"model": NAME, "messages": messages, "max_tokens": 5, "temperature": 0}
    found = client.chat.completions.create(**settings, logprobs=True, top_logprobs=3)
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    for one in content:
        assert [other.logprob for other in one.top_logprobs] == sorted(
            (o.logprob for o in one.top_logprobs), reverse=True
        )
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, one.top_logprobs[0].logprob)
        assert len(one.top_logprobs) == 3 and bytes(one.bytes).decode(errors="replace") == one.token
    assert client.chat.completions.create(**settings).choices[0].logprobs is None


def test_a_stop_string_ends_and_is_cut(client):
    free = client.completions.create(model=NAME, prompt="Asthma", max_tokens=20, temperature=0).choices[0].text
    stop = free[5:7]
    settings = {"model": NAME, "prompt": "Asthma", "max_tokens": 20, "temperature": 0, "stop": ["never", stop]}
    found = client.completions.create(**settings)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (free.split(stop)[0], "stop")
    assert found.usage.completion_tokens < 20
    pieces = [event.choices[0] for event in client.completions.create(**settings, stream=True)]
    assert "".join(piece.text for piece in pieces) == found.choices[0].text
    assert pieces[-1].finish_reason == "stop"


def test_settings_beyond_openais_and_the_next_turn_of_a_chat(client):
    ids = tokenizer().encode("Asthma")
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True}
    found = client.completions.create(model=NAME, prompt="Asthma", max_tokens=8, seed=1, extra_body=extra)
    (expected,) = [language_model().generate(ids, 8, temperature=1.0, top_k=1, repetition_penalty=1.2)]
    assert found.choices[0].text == tokenizer().decode(expected, before=ids)
    end = expected[3]
    stopped = client.completions.create(
        model=NAME, prompt="Asthma", max_tokens=8, seed=1, extra_body={**extra, "stop_token_ids": [end]}
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens == expected.index(end) + 1
    talk = [{"role": "user", "content": "Is asthma a disease of the airways?"}]
    settings = {"model": NAME, "max_tokens": 6, "temperature": 0}
    first = client.chat.completions.create(messages=talk, **settings)
    talk += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": TEXT}]
    second = client.chat.completions.create(messages=talk, **settings)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_tokens_of_texts_and_conversations(address):
    ids = tokenizer().encode(TEXT)
    found = httpx.post(f"{address}/tokenize", json={"prompt": TEXT}).json()
    assert found == {"tokens": ids, "count": len(ids), "max_model_len": 512}
    assert httpx.post(f"{address}/detokenize", json={"tokens": ids}).json() == {"prompt": TEXT}
    talk = httpx.post(f"{address}/tokenize", json={"messages": [{"role": "user", "content": "Hello"}]}).json()
    assert talk["tokens"][-1] == 74


def test_metrics_and_the_page(address, client):
    client.completions.create(model=NAME, prompt="Asthma", max_tokens=2)
    metrics = httpx.get(f"{address}/metrics").text
    for line in ("m1_engine_new_tokens_total", 'm1_http_requests_total{path="/v1/completions",status="200"}'):
        (value,) = [float(one.rpartition(" ")[2]) for one in metrics.splitlines() if one.startswith(f"{line} ")]
        assert value > 0
    assert 'm1_engine_cache_bytes{of="kept"}' in metrics and "m1_first_token_seconds_bucket" in metrics
    page = httpx.get(address)
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert "http://" not in page.text and "https://" not in page.text, "no outside host"
    assert httpx.get(f"{address}/card").json() == {
        "name": NAME, "card": "Read about asthma.", "context": 512, "chat": True,
    }  # fmt: skip


def test_no_character_of_an_answer_ends_a_line_of_its_event():
    """Whatever a client takes for the end of a line: str.splitlines knows all of them."""
    text = "".join(map(chr, [*range(0x180), *range(0x2000, 0x2070), 0xFEFF, 0x1F600]))
    event = _event({"text": text}).decode()
    (line,) = event.rstrip("\n").splitlines()
    assert json.loads(line.removeprefix("data: ")) == {"text": text} and "哮" in _event({"text": "哮"}).decode()
