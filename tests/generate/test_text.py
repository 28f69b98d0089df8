import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from m1jax.errors import UserError
from m1jax.generate import Sampling
from m1jax.generate.text import Writer, answers
from m1jax.tokenizer import SpecialIds, train
from m1jax.tokenizer.json_file import JsonTokenizer
from tests.generate import uncached

TEXT = "Pneumonia is an infection of the lung. 肺炎是肺部的感染。🫁 naïve 心律失常"
TOKENIZER = train(iter([TEXT * 3, "fever 发热 " * 4] * 4), 430)
TEXTS = st.lists(st.sampled_from([*"abcn肺炎🫁 .", "lung", "是肺"]), max_size=20).map("".join)


def written(tokens, stop=(), tokenizer=TOKENIZER, before=()):
    writer = Writer(tokenizer, stop, before)
    pieces = [writer.push(token) for token in tokens]
    return [*pieces, writer.finish()], writer.stopped


def first_end(text, stop):
    """The text before the stop string that is complete first, the longest of those; by every prefix of the text."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.lists(st.sampled_from(["ab", "abc", "b", "肺", "肺炎", "aab", "🫁 ", "n."]), max_size=3))
def test_text_comes_whole_and_ends_before_a_stop_string(text, stop):
    pieces, stopped = written(TOKENIZER.encode(text), stop)
    assert ("".join(pieces), stopped) == first_end(text, stop)
    assert all("�" not in piece for piece in pieces)


def test_a_character_split_over_tokens_is_held_until_it_is_whole():
    tokens = [128 + byte for byte in "🫁心".encode()]
    assert written(tokens)[0] == ["", "", "", "🫁", "", "", "心", ""]
    assert written(tokens[:2])[0] == ["", "", "�"]
    assert written([128 + 0xFF, 128 + ord("a")])[0] == ["�", "a", ""]
    assert "".join(written(tokens, ["心"])[0]) == "🫁"


def test_the_start_of_a_stop_string_is_held_until_it_is_none():
    letters = [128 + ord(letter) for letter in "xaabc"]
    assert written(letters, ["aac"])[0] == ["x", "", "", "aab", "c", ""]
    assert written(letters[:3], ["aac"])[0] == ["x", "", "", "aa"]


def sentencepiece_like():
    """Spaces are ▁, the first token of a text loses its own, and bytes stand in for characters without a token."""
    tokens = ["<s>", "</s>", "<pad>", "▁lung", "▁is", *(f"<0x{byte:02X}>" for byte in "肺".encode())]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return JsonTokenizer(backend, SpecialIds(bos=0, eos=1, pad=2))


def test_decoders_that_look_at_neighbours_are_followed():
    tokenizer = sentencepiece_like()
    assert tokenizer.decode([3, 4, 5, 6, 7, 3]) == "lung is肺 lung"
    pieces, _ = written([4, 5, 6, 7, 3], tokenizer=tokenizer, before=[3])
    assert pieces == [" is", "", "", "肺", " lung", ""]


def answered(stop, flow, prompts, **settings):
    generation = uncached.language_model().start(prompts, 40, Sampling(temperature=1.0), 3, flow=flow, **settings)
    shown, found = [""] * len(prompts), []
    for found in answers(generation, TOKENIZER, stop):
        shown = [text + answer.new for text, answer in zip(shown, found, strict=True)]
    assert shown == [answer.text for answer in found]
    return found


def test_answers_end_at_stop_strings_and_end_tokens_in_pieces_of_any_size():
    prompts = [TOKENIZER.encode("the lung"), TOKENIZER.encode("肺"), TOKENIZER.encode("n")]
    free = answered([], False, prompts)
    assert [answer.finish_reason for answer in free] == ["length"] * 3
    assert [answer.text for answer in free] == [TOKENIZER.decode(answer.tokens) for answer in free]
    stop, end = free[0].text[12:15], free[1].tokens[20]
    for flow in (True, False):
        found = answered([stop], flow, prompts, eos_id=end)
        for answer, whole in zip(found, free, strict=True):
            at = whole.tokens.index(end) + 1 if end in whole.tokens else 40
            text, stopped = first_end(TOKENIZER.decode(whole.tokens[:at]), [stop])
            assert answer.text == text
            assert answer.finish_reason == ("stop" if stopped else "eos" if at < 40 else "length")
            assert answer.tokens == whole.tokens[: len(answer.tokens)]
            assert stopped or len(answer.tokens) == at
            assert not stopped or TOKENIZER.decode(answer.tokens).startswith(text + stop)
        assert found[0].finish_reason == "stop"
        assert found[1].finish_reason == "eos"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        answered([""], True, [[200]])
