"""The overlap index against a slow one that keeps every run of words as text."""

import subprocess
import sys
import unicodedata

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.text.overlap import SHORTEST_ITEM, NgramIndex, normalise

words = st.sampled_from(["a", "b", "cé", "肺", "炎", "Ａ", "x_y", "7"])
# Characters that this Python's Unicode does not know have no name to tell Han by.
any_text = st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=60)
HAN_NAMES = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY IDEOGRAPH",
    "CJK RADICAL",
    "KANGXI",
    "IDEOGRAPHIC NUMBER",
    "IDEOGRAPHIC IT",
)
texts = st.lists(words, max_size=40).map(" ".join)


def naive_words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found, current = [], ""
    for character in folded + " ":
        han = unicodedata.name(character, "").startswith(HAN_NAMES)
        if han or not character.isalnum():
            if current:
                found.append(current)
            current = ""
            if han:
                found.append(character)
        else:
            current += character
    return found


def naive_hits(items: list[str], text: str, n: int) -> int:
    runs = set()
    for item in items:
        item_words = naive_words(item)
        length = min(n, len(item_words))
        if length >= 8:
            runs |= {tuple(item_words[i : i + length]) for i in range(len(item_words) - length + 1)}
    text_words = naive_words(text)
    return sum(
        tuple(text_words[i : i + length]) in runs
        for length in range(8, n + 1)
        for i in range(len(text_words) - length + 1)
    )


@settings(max_examples=150, deadline=None)
@given(any_text)
def test_normalise_is_what_a_slow_reading_gives(text: str) -> None:
    assert normalise(text) == naive_words(text)


def test_normalise_by_hand() -> None:
    assert normalise("Acute Ｍyocardial—infarction, 急性心梗 (STEMI)!") == [
        "acute", "myocardial", "infarction", "急", "性", "心", "梗", "stemi",
    ]  # fmt: skip
    assert normalise("snake_case Straße ﬁne") == ["snake", "case", "strasse", "fine"]
    assert normalise("") == normalise(" \n—。") == []


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, max_size=4), st.lists(texts, max_size=5), st.sampled_from([8, 9, 13]))
def test_hits_agree_with_the_slow_index(items: list[str], documents: list[str], n: int) -> None:
    index = NgramIndex(items, n)
    expected = [naive_hits(items, document, n) for document in documents]
    assert index.hits_batch(documents).tolist() == expected
    assert [index.hits(document) for document in documents] == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_a_run_is_found_wherever_it_stands_and_never_below_thirteen_words(before: int, after: int, shared: int) -> None:
    item = [f"item{i}" for i in range(40)]
    text = " ".join([f"x{i}" for i in range(before)] + item[:shared] + [f"y{i}" for i in range(after)])
    assert NgramIndex([" ".join(item)]).hits(text) == max(0, shared - 12)


def test_short_items_count_whole_from_eight_words() -> None:
    short = "which of these drugs slows the heart rate"
    assert len(short.split()) == SHORTEST_ITEM
    index = NgramIndex([short, "what is the cause of this pain"])
    assert len(index) == 1
    assert index.hits(f"He asked: {short.title()}?") == 1
    assert index.hits(short.removesuffix(" rate")) == 0
    assert index.hits("what is the cause of this pain") == 0


def test_no_run_reaches_from_one_text_into_the_next() -> None:
    item = "one two three four five six seven eight nine ten eleven twelve thirteen"
    index = NgramIndex([item])
    first, second = item[:30], item[30:]
    assert index.hits_batch([first, second]).tolist() == [0, 0]
    assert index.hits_batch(["", item, "", "one"]).tolist() == [0, 1, 0, 0]
    assert index.hits_batch([]).tolist() == []
    assert NgramIndex([]).hits(item) == 0


def test_hashes_are_the_same_in_every_process() -> None:
    program = (
        "from m1jax.text.overlap import NgramIndex; i = NgramIndex(['急性 heart failure a b c d e f g h i j k']);"
        "print([r.tolist() for r in i._runs_by_length.values()])"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", "PYTHONPATH": "."}, {"PYTHONHASHSEED": "2", "PYTHONPATH": "."})
    }
    assert len(outputs) == 1
    assert "[[" in outputs.pop()


def test_lone_surrogates_do_no_harm() -> None:
    assert NgramIndex(["\ud800 " * 20]).hits_batch(["\ud800", "a"]).dtype == np.int64
