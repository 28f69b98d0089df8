"""Documents that say what of them is learned: every target counts once, with its weight, in rows of every length."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.manifest import Manifest, document_ids, open_stores
from m1jax.rows.packing import pack
from m1jax.text.documents import Document, Part, Rejected
from m1jax.text.set_aside import screen
from tests.rows import toy_rows

WEIGHTS = st.sampled_from([0.0, 1.0, 0.5, 0.1, 3.0])
# Ids of texts begin at 100, so that a token says whether it was text.
PART = st.builds(Part, text=st.text(st.characters(min_codepoint=100, max_codepoint=600), max_size=30), weight=WEIGHTS)
IDS = st.builds(Part, ids=st.lists(st.integers(3, 90), min_size=1, max_size=4).map(tuple), weight=WEIGHTS)


def by_definition(document):
    """(token, weight) of a document's tokens, EOS last; a document without parts is learned as a whole."""
    found = []
    for part in document.parts or (Part(document.text),):
        found += [(token, np.float32(part.weight)) for token in part.ids or map(ord, part.text)]
    return [*found, (toy_rows.EOS, np.float32(document.parts[-1].weight if document.parts else 1))]


def packed_rows(folder, manifest, source="a"):
    """Row length to rows."""
    stores = open_stores(folder, manifest, [(length, source) for length in manifest.row_lengths])
    return {length: [store[i] for i in range(len(store))] for (length, _), store in stores.items()}


@given(
    contents=st.lists(st.lists(PART | IDS, max_size=5), min_size=1, max_size=12),
    row_lengths=st.sets(st.integers(2, 70), min_size=1, max_size=2),
    packing_window=st.integers(1, 8),
)
@settings(max_examples=80, deadline=None)
def test_every_target_counts_once_with_its_weight(tmp_path_factory, contents, row_lengths, packing_window):
    """Without parts a document is plain text, so that both kinds share rows."""
    folder = tmp_path_factory.mktemp("rows")
    plain = [toy_rows.document(i, 7 + i) for i in range(len(contents))]
    documents = [toy_rows.with_parts(d, *parts) if parts else d for d, parts in zip(plain, contents, strict=True)]
    documents.append(toy_rows.document(len(documents), 9))
    screened = [item for item in screen(documents, texts=False) if isinstance(item, Document)]
    kept = [item for item in screened if any(weight > 0 for _, weight in by_definition(item)[1:])]
    expected = {
        (number, at): pair
        for number, document in enumerate(kept)
        for at, pair in enumerate(by_definition(document))
        if at
    }
    manifest = pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), folder, row_lengths, packing_window, 0)
    for rows in packed_rows(folder, manifest).values():
        seen = {}
        for row in rows:
            arrays = {name: array[0] for name, array in expand([row]).items()}
            ends = np.cumsum(row.lengths)
            for document, offset, length, end in zip(row.documents, row.offsets, row.lengths, ends, strict=True):
                begin = end - length
                # What a piece says does not depend on its neighbours, and is a slice of its document.
                assert arrays["positions"][begin:end].tolist() == list(range(length))
                assert len(set(arrays["segment_ids"][begin:end].tolist())) == 1
                assert arrays["weights"][end - 1] == 0
                for at in range(length - 1):
                    key = int(document), int(offset) + at + 1
                    assert key not in seen
                    seen[key] = int(arrays["targets"][begin + at]), arrays["weights"][begin + at]
            assert not arrays["weights"][len(row.tokens) :].any()
        assert seen == expected
    source = manifest.sources["a"]
    assert source.trained_tokens == sum(weight > 0 for _, weight in expected.values())
    assert source.target_weight == pytest.approx(sum(float(weight) for _, weight in expected.values()))
    assert source.tokens == len(expected) + len(kept) and manifest == Manifest.load(folder)


def test_plain_documents_have_no_spans_and_count_all_targets(tmp_path):
    manifest = toy_rows.pack_lengths(tmp_path, {"a": [5, 40, 9]}, [16], 8)
    assert all(not len(row.spans) and not row.columns for row in packed_rows(tmp_path, manifest)[16])
    source = manifest.sources["a"]
    assert (source.tokens, source.trained_tokens, source.target_weight) == (57, 54, 54.0)
    whole = [toy_rows.with_parts(toy_rows.document(0, 5), Part("abc"), Part(ids=(3, 4)), Part("de"))]
    manifest = pack({"a": lambda: iter(whole)}, toy_rows.ToyTokenizer(), tmp_path, [16], 8, 0)
    (row,) = packed_rows(tmp_path, manifest)[16]
    assert not len(row.spans) and row.tokens.tolist() == [97, 98, 99, 3, 4, 100, 101, toy_rows.EOS]


class TwoAtOnce(toy_rows.ToyTokenizer):
    """Two characters are one token, as far as there are two."""

    def encode_arrays(self, texts):
        return [np.array([sum(map(ord, text[i : i + 2])) for i in range(0, len(text), 2)]) for text in texts]


def test_no_token_goes_over_the_border_of_parts(tmp_path):
    document = toy_rows.with_parts(toy_rows.document(0, 3), Part("abc", weight=0.0), Part("def"))
    manifest = pack({"a": lambda: iter([document])}, TwoAtOnce(), tmp_path, [16], 8, 0)
    (row,) = packed_rows(tmp_path, manifest)[16]
    assert row.tokens.tolist() == [97 + 98, 99, 100 + 101, 102, toy_rows.EOS]
    assert expand([row])["weights"][0, :5].tolist() == [0, 1, 1, 1, 0]


def test_the_end_has_the_weight_of_the_last_part(tmp_path):
    parts = [Part("ac"), Part("b", weight=0.0)], [Part("a", weight=0.0), Part("", weight=0.5)]
    documents = [toy_rows.with_parts(toy_rows.document(i, 3), *some) for i, some in enumerate(parts)]
    for document, weights in zip(documents, ([1, 0, 0, 0], [0.5, 0, 0, 0]), strict=True):
        manifest = pack({"a": lambda d=document: iter([d])}, toy_rows.ToyTokenizer(), tmp_path, [4], 8, 0)
        assert expand(packed_rows(tmp_path, manifest)[4])["weights"].tolist() == [weights]


def test_ids_beyond_the_vocabulary_are_set_aside(tmp_path):
    good = toy_rows.with_parts(toy_rows.document(0, 3), Part(ids=(59_999,)), Part("a"))
    bad = toy_rows.with_parts(toy_rows.document(1, 3), Part("b"), Part(ids=(5, 60_000)))
    manifest = pack({"a": lambda: iter([bad, good])}, toy_rows.ToyTokenizer(), tmp_path, [8], 8, 0)
    assert (manifest.sources["a"].documents, manifest.sources["a"].rejected) == (1, 1)
    (row,) = packed_rows(tmp_path, manifest)[8]
    assert row.tokens.tolist() == [59_999, 97, toy_rows.EOS]
    assert rejected(tmp_path) == [("a/1", "token id 60000 is not one of the tokenizer's 60000", "b", "a", "")]


def rejected(folder):
    names = ("origin", "reason", "text", "source", "record_id")
    return [tuple(line[name] for name in names) for line in pq.read_table(folder / "rejected.parquet").to_pylist()]


def test_columns_reach_every_piece(tmp_path):
    plain = [toy_rows.document(i, n) for i, n in enumerate([30, 4, 5])]
    documents = [dataclasses.replace(d, columns={"side": i, "r": i / 2}) for i, d in enumerate(plain)]
    manifest = pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), tmp_path, [8], 8, 0)
    assert manifest.sources["a"].columns == {"r": "float32", "side": "int32"}
    for row in packed_rows(tmp_path, manifest)[8]:
        assert row.columns["side"].tolist() == row.documents.tolist()
        assert row.columns["r"].tolist() == [document / 2 for document in row.documents.tolist()]
        assert row.columns["side"].dtype == np.int32 and row.columns["r"].dtype == np.float32


def test_a_column_on_some_documents_only(tmp_path):
    documents = [toy_rows.document(i, 4) for i in range(3)]
    documents[1] = dataclasses.replace(documents[1], columns={"side": 1})
    with pytest.raises(UserError, match="source 'a': 2 of 3 documents have no column 'side'"):
        pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), tmp_path, [8], 8, 0)


def test_rows_of_before_are_refused_with_what_to_do(tmp_path):
    toy_rows.pack_lengths(tmp_path, {"a": [5]}, [16], 8)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(UserError, match=r"manifest\.json has format 3, this m1jax reads 4: run `m1 pack` again\."):
        Manifest.load(tmp_path)


SIZES = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=3), min_size=1, max_size=25)


def test_pairs_of_shards_that_number_them_alike_stay_apart(tmp_path):
    """A pair is known by its shard and its number there, a document that is set aside by its place, whatever its id."""

    def member(i, pair, shard, size):
        plain = toy_rows.document(i, size)
        return dataclasses.replace(plain, id="same", record_id="same", columns={"pair": pair}, shard=shard)

    documents = [member(0, 0, "x", 5), member(1, 0, "y", 5), member(2, 0, "x", 5), member(3, 0, "y", 5)]
    documents += [member(4, 1, "x", 30), member(5, 1, "x", 3), member(6, 1, "y", 4)]
    manifest = pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), tmp_path, [16], 8, 0)
    members = collections.defaultdict(set)
    for row in packed_rows(tmp_path, manifest)[16]:
        for number, pair in zip(row.documents.tolist(), row.columns["pair"].tolist(), strict=True):
            members[pair].add(number)
    assert dict(members) == {0: {0, 2}, 1: {1, 3}, 3: {6}}
    assert [line[2] for line in rejected(tmp_path)] == [documents[4].text, documents[5].text]


@given(sizes=SIZES, shuffle=st.randoms(use_true_random=False), window=st.integers(1, 9), buckets=st.integers(1, 2))
@settings(max_examples=80, deadline=None)
def test_pairs_are_packed_whole_into_one_row(tmp_path_factory, sizes, shuffle, window, buckets):
    """Pairs of one to three documents in any order; those longer than the shortest rows are set aside."""
    folder = tmp_path_factory.mktemp("pairs")
    members = [(pair, size) for pair, some in enumerate(sizes) for size in some]
    shuffle.shuffle(members)
    documents = [
        dataclasses.replace(toy_rows.document(i, size), columns={"pair": 7 * pair - 50}, difficulty=float(i))
        for i, (pair, size) in enumerate(members)
    ]
    usable = [item for item in screen(documents, texts=False) if isinstance(item, Document)]
    tokens = collections.Counter()
    for document in usable:
        tokens[document.columns["pair"]] += len(document.text) + 1
    long = {pair for pair, size in tokens.items() if size > 24}
    sources = {"a": lambda: iter(documents)}
    arguments = toy_rows.ToyTokenizer(), folder, [40, 24], window, 0
    if long == tokens.keys():
        with pytest.raises(UserError, match=r"source 'a': every pair is longer than a row of 24 tokens|no document"):
            pack(sources, *arguments)
        return
    if buckets == 2 and len(tokens.keys() - long) < 4:
        return
    manifest = pack(sources, *arguments, difficulty_buckets=buckets)
    expected = {document.id for document in usable if document.columns["pair"] not in long}
    packed = {24: [], 40: []}
    for name, source in manifest.sources.items():
        windows = {}
        for length, rows in packed_rows(folder, manifest, name).items():
            ids = document_ids(folder, "a", [int(n) for row in rows for n in row.documents])
            places = collections.defaultdict(set)
            for number, row in enumerate(rows):
                assert not row.offsets.any() and len(row.tokens) <= length
                for document, pair in zip(row.documents.tolist(), row.columns["pair"].tolist(), strict=True):
                    places[pair].add(number)
                    packed[length].append(ids[document].id)
            assert all(len(some) == 1 for some in places.values())
            first = source.files[length].first_rows
            windows[length] = [
                {int(n) for row in rows[a:b] for n in row.documents} for a, b in itertools.pairwise(first)
            ]
            assert source.files[length].cut == source.files[length].long == 0
        assert windows[24] == windows[40]
        assert max(map(len, windows[24])) <= max(window, 3)
    assert sorted(packed[24]) == sorted(packed[40]) == sorted(expected)
    reason = "pair longer than a row of 24 tokens"
    aside = [Rejected(d.id, reason, d.text, "a") for d in usable if d.columns["pair"] in long]
    others = [item for item in screen(documents, texts=False) if isinstance(item, Rejected)]
    found = [Rejected(*line) for line in rejected(folder)]
    assert sorted(found, key=str) == sorted([*aside, *others], key=str)
    assert sum(source.rejected for source in manifest.sources.values()) == len(found)
    assert sum(source.documents for source in manifest.sources.values()) == len(expected)


def test_a_document_without_a_target_is_set_aside(tmp_path):
    """A first token is no target, and neither is what an empty part or a weight below float32 would weigh."""
    parts = (
        [Part("a"), Part("b", weight=0.0)],
        [Part("ab", weight=0.0), Part(""), Part("c", weight=0.0)],
        [Part("ab", weight=1e-60)],
        [Part("a", weight=0.0), Part("b", weight=0.5), Part("c", weight=0.0)],
    )
    documents = [toy_rows.with_parts(toy_rows.document(i, 3), *some) for i, some in enumerate(parts)]
    manifest = pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), tmp_path, [8], 8, 0)
    assert (manifest.sources["a"].documents, manifest.sources["a"].rejected) == (1, 3)
    assert {line[1] for line in rejected(tmp_path)} == {"gives no token that is learned"}
    (row,) = packed_rows(tmp_path, manifest)[8]
    assert expand([row])["weights"].tolist() == [[0.5, 0, 0, 0, 0, 0, 0, 0]]
    with pytest.raises(UserError, match=r"source 'a' holds no document with text \(3 were set aside\)"):
        pack({"a": lambda: iter(documents[:3])}, toy_rows.ToyTokenizer(), tmp_path / "none", [8], 8, 0)
