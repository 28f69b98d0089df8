"""`response_format`: answers of a model that knows no JSON are JSON of the schema, and nobody else's answer changes."""

import concurrent.futures
import json
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field

from m1jax.errors import UserError
from m1jax.generate.requests import Request
from m1jax.generate.sampling import Sampling
from m1jax.generate.steering import words
from m1jax.serve.errors import RequestError
from tests.serve.served import NAME, client_of, language_model, running, served, tokenizer, until

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["asthma", "哮喘", "none"]},
        "stage": {"type": "integer", "minimum": 1, "maximum": 4},
        "chronic": {"type": "boolean"},
        "signs": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "stage", "chronic", "signs"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "finding", "strict": True, "schema": SCHEMA}}
TALK = [{"role": "user", "content": "Is asthma a disease?"}]


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with client_of(server[0]) as found:
        yield found


def asked(client, **settings):
    settings = {"model": NAME, "messages": TALK, "max_tokens": 200, "temperature": 1.0, **settings}
    return client.chat.completions.create(**settings)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"top_p": 0.5}, {"extra_body": {"top_k": 3}}, {"presence_penalty": 2}], ids=str
)
def test_every_answer_is_json_of_the_schema(client, settings):
    found = asked(client, response_format=FORMAT, n=4, seed=3, **settings)
    for choice in found.choices:
        answer = json.loads(choice.message.content)
        assert choice.finish_reason == "stop" and set(answer) == set(SCHEMA["required"])
        assert answer["kind"] in SCHEMA["properties"]["kind"]["enum"] and answer["chronic"] in (True, False)
        assert answer["stage"] in (1, 2, 3, 4) and 1 <= len(answer["signs"]) <= 3
        assert all(isinstance(sign, str) and len(sign) <= 5 for sign in answer["signs"])
        assert json.dumps(answer, ensure_ascii=False) == choice.message.content or "\\" in choice.message.content
    again = asked(client, response_format=FORMAT, n=4, seed=3, **settings)
    assert again.choices == found.choices, "the same seed says the same"


def test_openais_package_parses_an_answer_into_a_class(client):
    class Finding(BaseModel):
        kind: Literal["asthma", "flu"]
        stage: int = Field(ge=0, le=9)

    found = client.chat.completions.parse(
        model=NAME, messages=TALK, response_format=Finding, max_tokens=100, temperature=1.0, seed=1
    )
    assert isinstance(found.choices[0].message.parsed, Finding)


def test_a_stream_adds_up_to_the_same_json_and_log_probabilities_are_the_models(client):
    whole = asked(client, response_format=FORMAT, seed=7, logprobs=True, top_logprobs=2).choices[0]
    pieces = [
        event.choices[0].delta.content or "" for event in asked(client, response_format=FORMAT, seed=7, stream=True)
    ]
    assert "".join(pieces) == whole.message.content
    first = whole.logprobs.content[0]
    assert first.token == "{" and first.logprob < first.top_logprobs[0].logprob, "the model alone would not say it"


def test_json_object_is_any_object_and_a_limit_cuts_it_off(client):
    found = asked(client, response_format={"type": "json_object"}, max_tokens=12, seed=2)
    assert found.choices[0].message.content.startswith("{") and found.choices[0].finish_reason == "length"
    assert asked(client, response_format={"type": "text"}, seed=2).choices == asked(client, seed=2).choices


def test_neighbours_of_a_constrained_answer_say_what_they_say_alone(client):
    alone = [asked(client, seed=seed, max_tokens=60).choices for seed in range(6)]
    formatted = asked(client, response_format=FORMAT, seed=9).choices
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        beside = [pool.submit(asked, client, response_format=FORMAT, seed=9) for _ in range(6)]
        found = [pool.submit(asked, client, seed=seed, max_tokens=60) for seed in range(6)]
        assert [one.result().choices for one in found] == alone
        assert all(one.result().choices == formatted for one in beside)


def test_what_follows_an_answer_in_the_same_slot_is_free_again(server, client):
    free = asked(client, seed=4, max_tokens=40).choices
    asked(client, response_format=FORMAT, seed=4)
    until(lambda: server[1].engine.running == 0)
    assert asked(client, seed=4, max_tokens=40).choices == free
    turn = [
        *TALK,
        {"role": "assistant", "content": asked(client, response_format=FORMAT, seed=4).choices[0].message.content},
    ]
    turn.append({"role": "user", "content": "And?"})
    ids = server[1].chat.encode(turn, add_generation_prompt=True)
    expected = language_model().generate(ids, 20, eos_id=list(server[1].chat_ends))
    warm = asked(client, messages=turn, temperature=0, max_tokens=20)
    assert warm.usage.prompt_tokens_details.cached_tokens > 0, "the state at the end of the JSON was kept"
    ends = set(server[1].chat_ends)
    assert warm.choices[0].message.content == tokenizer().decode([i for i in expected if i not in ends], before=ids)


def test_a_schema_without_end_is_refused():
    with pytest.raises(RequestError, match="it has 200019 characters, at most 100000"):
        served().grammars.constraint({"description": "x" * 200_000}, [0])


class Only:
    """Allows some tokens, or nothing."""

    def __init__(self, *tokens):
        self.tokens, self.taken = tokens, []

    def allowed(self):
        if not self.tokens:
            raise UserError("nothing may follow.")
        found = np.zeros(words(tokenizer().vocab_size), np.uint32)
        for token in self.tokens:
            found[token // 32] |= np.uint32(1 << token % 32)
        return found

    def take(self, token):
        self.taken.append(token)

    @property
    def complete(self):
        return len(self.taken) == 5


def test_a_constraint_of_ones_own_is_asked_token_by_token_and_its_error_ends_only_its_request():
    engine, told = language_model().online(), {}

    def submit(name, constraint, **settings):
        told[name] = []
        engine.submit(Request([5, 6], 20, constraint=constraint, **settings), told[name].append)

    only = Only(33, 64, tokenizer().vocab_size - 1)
    submit("only", only, sampling=Sampling(temperature=1.0))
    submit("nothing", Only())
    submit("free", None)
    while engine.step():
        pass
    tokens = [token for progress in told["only"] for token in progress.tokens]
    assert tokens == only.taken and len(tokens) == 5 and set(tokens) <= set(only.tokens)
    assert told["only"][-1].finish_reason == "eos"
    assert told["nothing"][-1].error == "nothing may follow." and engine.counts.failed == 1
    assert [token for progress in told["free"] for token in progress.tokens] == language_model().generate([5, 6], 20)


def test_a_token_outside_the_schema_ends_in_a_sentence_and_raises_nothing_meanwhile():
    one = served().grammars.constraint(SCHEMA, [tokenizer().eos_id])
    one.take(tokenizer().encode("x")[0])
    assert not one.complete
    with pytest.raises(UserError, match="cannot go on within response_format"):
        one.allowed()
