import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.tokenizer import FIRST_MERGE, extend, train
from m1jax.tokenizer.parts import part_sizes
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL


def pieces(tokenizer, text):
    return [tokenizer.decode_bytes([i]) for i in tokenizer.encode(text)]


def by_definition(tokenizer, word):
    """BPE of a word as it is defined: the first-ranked pair of neighbours is joined wherever it is, from the left."""
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    spelling = {token: i for i, token in enumerate(tokenizer.token_texts)}
    parts = [tokenizer.token_texts[128 + byte] for byte in word.encode()]
    while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        joined, i = [], 0
        while i < len(parts):
            whole = tuple(parts[i : i + 2]) == best
            joined.append("".join(parts[i : i + 2]) if whole else parts[i])
            i += 2 if whole else 1
        parts = joined
    return [spelling[part] for part in parts]


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=2, max_size=12), st.text("abc", max_size=12))
@settings(max_examples=60, deadline=None)
def test_continued_merges_are_learnt_and_applied_by_definition(medical, word):
    general = train(["ab abc ab bc cab abc"], FIRST_MERGE + 4)
    extended = extend(general, [" ".join(medical)] * 2, FIRST_MERGE + 20)
    assert extended.merges[: len(general.merges)] == general.merges
    for text in (word, *medical):
        assert extended.encode(text) == by_definition(extended, text)
        assert extended.encode_by_tokenizers([text])[0].tolist() == extended.encode(text)
    for token in range(FIRST_MERGE, extended.vocab_size):
        assert extended.encode(extended.decode([token])) == [token]


@given(
    st.lists(st.lists(st.text("abcd", min_size=1, max_size=9), min_size=2, max_size=8), min_size=3, max_size=4),
    st.text("abcd", max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_any_number_of_texts_shape_the_ids_in_turn(texts, word):
    stages = [train([" ".join(texts[0])] * 2, FIRST_MERGE + 5)]
    for text in texts[1:]:
        stages.append(extend(stages[-1], [" ".join(text)] * 2, stages[-1].vocab_size + 5))
    for before, after in itertools.pairwise(stages):
        assert after.merges[: len(before.merges)] == before.merges
    for text in (word, *itertools.chain.from_iterable(texts)):
        assert stages[-1].encode(text) == by_definition(stages[-1], text)
    for token in range(FIRST_MERGE, stages[-1].vocab_size):
        assert stages[-1].encode(stages[-1].decode([token])) == [token]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(512, 5000))
@settings(deadline=None)
def test_sizes_of_parts(ids, vocab_size):
    open_parts = ids.count(0)
    if not open_parts:
        ids, open_parts = [*ids, 0], 1
    sizes = part_sizes(ids, max(vocab_size, sum(ids) + open_parts))
    decided = [after - before for before, after in itertools.pairwise([0, *sizes])]
    assert sizes[-1] == max(vocab_size, sum(ids) + open_parts)
    assert all(share == given for share, given in zip(decided, ids, strict=True) if given)
    shares = [share for share, given in zip(decided, ids, strict=True) if not given]
    if any(ids) or len(ids) == 1:
        assert max(shares) - min(shares) <= 1 <= min(shares)
    else:
        assert shares[0] == max(vocab_size * 3 // 4, FIRST_MERGE + 1)
        assert max(shares[1:]) - min(shares[1:]) <= 1


def test_the_shipped_sizes():
    assert part_sizes([0, 0], 8192) == [6144, 8192]
    assert part_sizes([99_840, 0], 133_120) == [99_840, 133_120]
    assert part_sizes([0, 0, 0], 512) == [385, 448, 512]


def test_general_ids_stay_and_medical_text_gets_shorter():
    general = train(GENERAL, 480)
    extended = extend(general, MEDICAL, 560)
    assert extended.merges[: len(general.merges)] == general.merges and extended.vocab_size == 560
    for text in MEDICAL:
        assert len(extended.encode(text)) < 0.8 * len(general.encode(text))
    assert pieces(extended, " fever") == [b" fever"] != pieces(general, " fever")


def test_the_first_continued_merge_is_the_commonest_pair_of_general_tokens():
    general = train(["ab cd ab cd"], FIRST_MERGE + 2)  # ab, cd with their spaces need more merges than these
    extended = extend(general, ["xabcd xabcd xabcd zz"], FIRST_MERGE + 3)
    assert [extended.decode([i]) for i in general.encode("xabcd")] == ["x", "ab", "cd"]
    assert extended.merges[-1] in {("x", "ab"), ("ab", "cd")}


def test_no_merge_crosses_words():
    general = train(["a"], 480)
    extended = extend(general, ["fever 39 fever 39, 咳嗽3次"] * 20, 600)
    for i in range(FIRST_MERGE, extended.vocab_size):
        text = extended.decode_bytes([i]).decode(errors="ignore")
        assert " " not in text[1:] and not any(c.isdigit() for c in text)


def test_endless_runs_are_bounded():
    endless = "中" * 20_000 + "a" * 20_000 + " " * 20_000 + "!" * 20_000 + "\n" * 20_000
    first = train([endless], 500)
    for trained in (first, extend(first, [endless + "b" * 20_000], 560)):
        longest = {}
        for i in range(FIRST_MERGE, trained.vocab_size):
            text = trained.decode([i])
            longest[text[0]] = max(longest.get(text[0], 0), len(text))
        assert longest["中"] == 16 and max(longest.values()) <= 130


def test_training_is_deterministic():
    expected = extend(train(GENERAL, 480), MEDICAL, 560).fingerprint
    code = "from m1jax.tokenizer import *; from tests.tokenizer.tokenizer_texts import *; "
    code += "print(extend(train(GENERAL, 480), MEDICAL, 560).fingerprint)"
    alone = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_more_general_ids_than_the_first_private_area_holds(tmp_path):
    """6,400 private-use characters lie below the surrogates' end; a general part of more ids passes them."""
    words = [f"{a}{b}{c}{d}" for a in "bcdfghjkl" for b in "aeiou" for c in "mnpqrstvw" for d in "aeiouxyz"]
    texts = [" ".join(words[i : i + 5]) for i in range(0, len(words), 5)] * 2
    texts += [" ".join(word * 2 for word in words)] * 2
    general = train(texts, 9000)
    assert general.vocab_size > 6400 + FIRST_MERGE
    medical = [" ".join(f"{word}{word}st" for word in words)] * 2
    extended = extend(general, medical, general.vocab_size + 4000)
    assert extended.vocab_size > general.vocab_size + 1000
    used = {token for text in medical for token in extended.encode(text)}
    assert max(used) >= general.vocab_size and extended.decode(extended.encode(medical[0])) == medical[0]
    late = set(general.token_texts[6400:])
    assert sum(left in late or right in late for left, right in extended.merges[len(general.merges) :]) > 100
    extended.save(tmp_path)
    assert (
        json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"][extended.token_texts[-1]]
        == extended.vocab_size - 1
    )


def test_bad_input():
    with pytest.raises(UserError, match="vocab_size = 384"):
        train(GENERAL, 384)
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="no text"):
            train(nothing, 500)
    general = train(["ab"], 500)
    assert general.vocab_size == FIRST_MERGE
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="no text for a further part"):
            extend(general, nothing, 500)
    with pytest.raises(UserError, match="no room beside the 384 ids"):
        extend(general, MEDICAL, 384)
