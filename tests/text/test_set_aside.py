"""What came before is known, however much of it there is."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.text import set_aside
from m1jax.text.documents import Document, Rejected
from m1jax.text.set_aside import screen


def by_definition(items):
    """The reason of each document, with plain sets."""
    texts, reasons = set(), []
    for document in items:
        if not document.text.strip("\0 "):
            reasons.append("empty")
        else:
            reasons.append("duplicate text" if document.text in texts else None)
            texts.add(document.text)
    return reasons


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", " \0", "a", "b", *map(str, range(25))])), max_size=80),
    st.integers(1, 9),
    st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_repetitions_against_the_definition(given_items, batch, fewest):
    documents = [Document(str(i), text, "s", "en", "general") for i, text in given_items]
    rows, sorted_from = set_aside._BATCH_ROWS, set_aside._FEWEST_SORTED
    set_aside._BATCH_ROWS, set_aside._FEWEST_SORTED = batch, fewest
    try:
        screened = list(screen(documents))
    finally:
        set_aside._BATCH_ROWS, set_aside._FEWEST_SORTED = rows, sorted_from
    reasons = [item.reason if isinstance(item, Rejected) else None for item in screened]
    assert reasons == by_definition(documents)
    assert [item for item in screened if isinstance(item, Document)] == [
        document for document, reason in zip(documents, reasons, strict=True) if reason is None
    ]


def test_what_comes_as_rejected_passes_in_its_place():
    bad = Rejected("x#2", "not JSON", "{", "x")
    good = [Document(str(i), f"text {i}", "s", "en", "general") for i in range(3)]
    assert list(screen([good[0], bad, good[1], bad, good[2]])) == [good[0], bad, good[1], bad, good[2]]


def test_unlisted_domains_are_named_up_to_twenty():
    """A field such as a web page's host may have another value in every record."""
    documents = [Document(str(i), f"text {i}", "s", "en", f"host-{i % 30}") for i in range(60)]
    listed = Document("a", "text", "s", "en", "radiology")
    reasons = [item.reason for item in screen([*documents, listed], domains=("radiology",)) if item != listed]
    named = [f"domain 'host-{i}' is not in data.domains" for i in range(20)]
    assert reasons == [*named, *["domain is not in data.domains"] * 10] * 2
    assert list(screen([listed, documents[0]])) == [listed, documents[0]]


def test_each_fault_has_its_reason():
    def document(**fields):
        return Document(**{"id": "i", "text": "t", "source": "s", "language": "en", "domain": "general", **fields})

    faults = {
        "no valid Unicode": document(text="\ud800"),
        "domain is not a name": document(domain="law/civil"),
        "source is no file name": document(source="../up"),
        "difficulty is no finite number": document(difficulty=float("inf")),
        "larger than 32 MiB": document(text="x" * (32 << 20)),
    }
    for reason, item in faults.items():
        (screened,) = screen([item])
        assert isinstance(screened, Rejected) and screened.reason == reason
    # Nothing of what was set aside is remembered as having come before.
    kept = collections.Counter(type(item).__name__ for item in screen([*faults.values(), document()]))
    assert kept == {"Rejected": len(faults), "Document": 1}
