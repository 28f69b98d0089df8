"""The needle test: where the fact stands, how long prompts are, and what counts as found."""

import json

import numpy as np
import pytest

from m1jax.errors import UserError
from m1jax.evaluate import needle
from m1jax.evaluate.needle import ANSWER_TOKENS, WORDINGS, Found, Grid, Haystack
from m1jax.generate import LanguageModel
from m1jax.show import needle as shown
from m1jax.tokenizer import chat
from tests.generate import uncached
from tests.model import small
from tests.tokenizer.chat.chat_tokenizers import OURS
from tests.verbs.test_bad_input import refused

# Every passage tells its number, so that a place in the text can be read from it.
TEXTS = [" ".join(f"Page {i} of {book}." for i in range(60)) for book in ("A", "B", "C")]
LENGTH = 250


def messages(grid, length=LENGTH, depth=0.5, trial=0):
    haystack = Haystack(TEXTS, OURS, max(grid.lengths))
    fact = needle.needle(grid.wording, grid.candidates, grid.seed, trial)
    return fact, needle._talk(haystack, fact, chat.of(OURS), grid, length, depth, trial, None)


@pytest.mark.parametrize("length", [LENGTH, 400])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_fact_stands_once_at_its_depth_and_the_prompt_fills_its_length(length, depth):
    grid = Grid((length,))
    fact, (message,) = messages(grid, length, depth)
    text = message["content"]
    assert text.count(fact.fact) == 1 and text.endswith(f"\n\n{fact.question}")
    before, after = text.removesuffix(fact.question).split(fact.fact)
    share = len(before) / (len(before) + len(after))
    assert share == pytest.approx(depth, abs=0.12)
    # Nothing of the text is lost or written twice: the pages follow one another.
    pages = [int(word) for word in (before + after).replace(".", " ").split() if word.isdigit()]
    assert pages == list(range(len(pages)))
    size = len(chat.of(OURS).encode([message], add_generation_prompt=True))
    assert length - ANSWER_TOKENS - 20 < size <= length - ANSWER_TOKENS


def test_trials_differ_in_fact_and_text_and_repeat_by_seed():
    grid = Grid((LENGTH,), trials=3)
    found = [messages(grid, trial=trial) for trial in range(3)]
    assert len({fact.question for fact, _ in found}) == len({fact.value for fact, _ in found}) == 3
    assert len({talk[0]["content"][:40] for _, talk in found}) == 3
    assert [messages(grid, trial=trial) for trial in range(3)] == found
    fact = found[0][0]
    assert len(set(fact.answers)) == grid.candidates and fact.value in fact.answers[fact.right]
    assert needle.needle(WORDINGS["zh"], 4, 0, 0).fact.startswith("绿色柜子的密码是")


def test_a_model_is_asked_by_likelihood_and_by_text():
    """Both numbers against a forward pass without a cache, for a model of random weights."""
    grid = Grid((LENGTH,), depths=(0.5,), candidates=3)
    config = small.config(num_layers=2, vocab_size=432, max_positions=512)
    model = LanguageModel(config, small.BASE, uncached.parameters())
    talk = chat.of(OURS)
    (found,) = needle.run(grid, model, OURS, talk, TEXTS)
    fact, asked = messages(grid)
    prompt = talk.encode(asked, add_generation_prompt=True)
    assert (found.tokens, found.value) == (len(prompt), fact.value)

    def logp(answer):
        ids = talk.encode([*asked, {"role": "assistant", "content": answer}])
        logits = np.asarray(model(ids[:-1]), np.float64)[len(prompt) - 1 :]
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(logits)), ids[len(prompt) :]]
        return float((chosen - np.log(np.exp(logits).sum(axis=1))).sum())

    scores = [logp(answer) for answer in fact.answers]
    right = scores.pop(fact.right)
    assert found.margin == pytest.approx(right - max(scores), abs=1e-2)
    assert found.chosen == (right > max(scores))
    new = model.generate(prompt, ANSWER_TOKENS, eos_id=talk.ends)
    said = OURS.decode([i for i in new if i not in talk.ends], before=prompt).strip()
    assert found.text == said and not found.said


def test_a_value_counts_as_a_whole_number_only():
    def said(text):
        return Found(100, 0.0, 0, 90, -1.0, text, "12345").said

    assert said("It is 12345.") and said("12345")
    assert not said("It is 123456.") and not said("812345") and not said("")


def test_numbers_for_machines_and_people(tmp_path):
    found = [
        Found(length, depth, trial, length - 40, margin, "12345" if length == 100 else "?", "12345")
        for length in (100, 200)
        for depth in (0.0, 1.0)
        for trial, margin in enumerate((1.0, -1.0 if depth else 2.0))
    ]
    data = shown.data(found, 8)
    assert data["lengths"] == [100, 200] and data["depths"] == [0.0, 1.0] and data["chance"] == 0.125
    assert data["likelihood"] == [[1.0, 0.5], [1.0, 0.5]] and data["text"] == [[1.0, 1.0], [0.0, 0.0]]
    assert json.loads(json.dumps(data))["items"][3]["margin"] == -1.0
    by_likelihood, by_text = shown.tables(found, 8)
    assert list(by_likelihood.columns[2].cells) == ["1/2", "1/2"] and list(by_text.columns[3].cells) == ["4/4", "0/4"]
    shown.plot(found, 8, tmp_path / "map.png", "a map")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_sentence(tmp_path, capsys):
    for wrong, said in (
        (Grid((600,)), "more than the model's 512 positions"),
        (Grid((LENGTH,), depths=(1.5,)), "a depth of 1.5"),
        (Grid((LENGTH,), candidates=1), "2 or more candidates"),
    ):
        with pytest.raises(UserError, match=said):
            wrong.check(512)
    with pytest.raises(UserError, match="and the longest context needs 5000"):
        Haystack(TEXTS, OURS, 5000)
    with pytest.raises(UserError, match="no room for text"):
        messages(Grid((60,)), 60)
    ask = ["needle", "--model", str(tmp_path), "--text", str(tmp_path), "--lengths", "100"]
    refused(capsys, [*ask, "--language", "fr"], "'fr' is unknown")
    refused(capsys, ask, str(tmp_path))
