"""An even sample of a corpus's sources."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.text import sampling
from m1jax.text.documents import Document


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20), st.integers(1, 10**8))
@settings(max_examples=200, deadline=None)
def test_small_sources_are_taken_whole_and_large_ones_in_equal_parts(sizes, budget):
    sources = {str(i): {"bytes": size, "domain": "general"} for i, size in enumerate(sizes)}
    taken = sampling.taken_bytes(sources, budget)
    assert min(sum(sizes), budget) - len(sizes) <= sum(taken.values()) <= budget
    cut = [taken[name] for name in sources if taken[name] < sources[name]["bytes"]]
    assert all(0 <= taken[name] <= source["bytes"] for name, source in sources.items())
    if cut:
        assert max(cut) - min(cut) <= len(sizes) and max(taken.values()) <= max(cut) + len(sizes)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 3000), st.data())
@settings(max_examples=100, deadline=None)
def test_texts_are_taken_evenly(sizes, budget, data):
    owners = [data.draw(st.sampled_from("ab")) for _ in sizes]
    sources = {
        name: {"domain": "general", "bytes": sum(size for size, own in zip(sizes, owners, strict=True) if own == name)}
        for name in set(owners)
    }
    documents = [
        Document(str(i), "x" * n, own, "en", "general") for i, (n, own) in enumerate(zip(sizes, owners, strict=True))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "read_documents", lambda path: iter(documents))
        wanted = sampling.taken_bytes(sources, budget)
        chosen = list(sampling.texts(pathlib.Path("nowhere"), sources, ["general"], budget))
        assert list(sampling.texts(pathlib.Path("nowhere"), sources, ["medical"], budget)) == []
    assert abs(sum(map(len, chosen)) - sum(wanted.values())) <= max(sizes) * len(sources)
    if budget >= sum(sizes):
        assert chosen == [document.text for document in documents]
