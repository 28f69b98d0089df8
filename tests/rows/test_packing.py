import collections
import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.rows.bestfit import pack_documents, packing_borders
from m1jax.rows.expand import expand
from m1jax.rows.manifest import Manifest, document_ids, index_path, open_stores, row_path
from m1jax.rows.packing import best_fit, pack, split
from m1jax.rows.shuffle import permutation
from m1jax.rows.store import RowStore
from tests.rows import toy_rows


def stores(folder, manifest):
    return open_stores(folder, manifest, [(s, name) for name in manifest.sources for s in manifest.row_lengths])


@given(st.integers(2, 300), st.integers(2, 50))
@settings(max_examples=100, deadline=None)
def test_split_counts_every_target_once(length, row_length):
    pieces = split(length, row_length)
    targets = [offset + i for offset, size in pieces for i in range(1, size)]
    assert targets == list(range(1, length))
    assert all(size == row_length for _, size in pieces[:-1]) and 2 <= pieces[-1][1] <= row_length


def best_fit_by_definition(lengths, capacity):
    bins, rooms = [], []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [b for b in range(len(bins)) if rooms[b] >= lengths[i]]
        if fitting:
            best = min(fitting, key=lambda b: rooms[b])
        else:
            best = len(bins)
            bins.append([])
            rooms.append(capacity)
        bins[best].append(i)
        rooms[best] -= lengths[i]
    return sorted(capacity - room for room in rooms), bins


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 64))
@settings(max_examples=100, deadline=None)
def test_best_fit_against_the_definition(lengths, capacity):
    bins = best_fit(lengths, capacity)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    assert sorted(sum(lengths[i] for i in chosen) for chosen in bins) == best_fit_by_definition(lengths, capacity)[0]


@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=25).filter(any),
    row_lengths=st.sets(st.integers(2, 70), min_size=1, max_size=3),
    packing_window=st.integers(1, 12),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_target_exactly_once_at_every_row_length(tmp_path_factory, lengths, row_lengths, packing_window, seed):
    folder = tmp_path_factory.mktemp("rows")
    manifest = toy_rows.pack_lengths(folder, {"a": lengths}, row_lengths, packing_window, seed)
    # Documents are numbered without those that are set aside; so is a single character that is a space.
    kept = [i for i, length in enumerate(lengths) if toy_rows.document(i, length).text.strip("\0 \x85\u2028")]
    documents = {number: toy_rows.tokens_of(i, lengths[i]) for number, i in enumerate(kept)}
    expected = {(i, at): token for i, tokens in documents.items() for at, token in enumerate(tokens) if at}
    windows = {}
    for (row_length, _), store in stores(folder, manifest).items():
        seen = {}
        packed = [store[i] for i in range(len(store))]
        for row in packed:
            assert row.row_length == row_length and len(row.tokens) <= row_length
            arrays = {name: array[0] for name, array in expand([row]).items()}
            start = 0
            for document, offset, size in zip(row.documents, row.offsets, row.lengths, strict=True):
                piece = slice(start, start + size)
                assert row.tokens[piece].tolist() == documents[document][offset : offset + size]
                for at in np.flatnonzero(arrays["weights"][piece]).tolist():
                    key = int(document), int(offset) + at + 1
                    assert key not in seen
                    seen[key] = int(arrays["targets"][start + at])
                start += int(size)
        assert seen == expected
        first = manifest.sources["a"].files[row_length].first_rows
        windows[row_length] = [
            {int(d) for row in packed[a:b] for d in row.documents} for a, b in itertools.pairwise(first)
        ]
        slots = sum(len(row.tokens) for row in packed)
        assert manifest.sources["a"].files[row_length].fill == pytest.approx(slots / (len(packed) * row_length))
    contents = next(iter(windows.values()))
    assert all(other == contents for other in windows.values())
    assert max(map(len, contents)) <= packing_window
    assert collections.Counter(d for w in contents for d in w) == dict.fromkeys(documents, 1)


def test_a_document_of_one_token_has_one_target(tmp_path):
    manifest = toy_rows.pack_lengths(tmp_path, {"a": [1]}, [4], 8)
    row = stores(tmp_path, manifest)[4, "a"][0]
    assert row.tokens.tolist() == [toy_rows.FIRST, toy_rows.EOS]
    assert expand([row])["weights"].tolist() == [[1, 0, 0, 0]]


def test_manifest_counts_what_is_there(tmp_path):
    manifest = toy_rows.pack_lengths(
        tmp_path, {"b": [5, 0, 9], "a": [3]}, [8, 4, 8], 8, seed=7, domains={"b": "medical"}
    )
    assert list(manifest.sources) == ["a", "b"] and manifest.row_lengths == (4, 8)
    source = manifest.sources["b"]
    assert (source.documents, source.rejected, source.tokens, source.packing_windows) == (2, 1, 6 + 10, 1)
    assert (source.language, source.domain) == ("en", "medical")
    texts = [toy_rows.document(i, n).text for i, n in enumerate([5, 0, 9])]
    assert source.utf8_bytes == sum(len(text.encode()) for text in texts)
    for length, file in source.files.items():
        path = row_path(tmp_path, length, "b")
        assert file.sha256 == artefact.checksum(path) and file.bytes == path.stat().st_size
        RowStore(path, file.rows).verify(file.sha256)
    index = pq.read_table(index_path(tmp_path, "b")).to_pylist()
    assert [(line["id"], line["tokens"], line["difficulty"]) for line in index] == [("b/0", 6, None), ("b/2", 10, None)]
    assert [line["utf8_bytes"] for line in index] == [len(texts[0].encode()), len(texts[2].encode())]
    assert document_ids(tmp_path, "b", [1, 1]) == {1: ("b/2", "", ())}
    with pytest.raises(UserError, match="lists 2 documents, but rows name number 2"):
        document_ids(tmp_path, "b", [2])
    assert Manifest.load(tmp_path) == manifest
    assert (manifest.tokenizer, manifest.vocab_size, manifest.seed, manifest.packing_window) == ("toy", 60_000, 7, 8)


def test_packing_twice_gives_the_same_bytes(tmp_path):
    lengths = {"a": [(7 * i) % 61 for i in range(200)], "b": [500, 3]}
    for name in ("x", "y"):
        toy_rows.pack_lengths(tmp_path / name, lengths, [16, 64], 32, seed=3)
    for file in sorted((tmp_path / "x").rglob("*.*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "y" / file.relative_to(tmp_path / "x")).read_bytes()
    other = toy_rows.pack_lengths(tmp_path / "z", lengths, [16, 64], 32, seed=4)
    assert other.sources["a"].files[16].sha256 != Manifest.load(tmp_path / "x").sources["a"].files[16].sha256


def test_documents_are_shuffled_into_windows_of_nearly_equal_size(tmp_path):
    manifest = toy_rows.pack_lengths(tmp_path, {"a": [3] * 101}, [4], 50)
    first = manifest.sources["a"].files[4].first_rows
    assert len(first) == 4 and all(25 <= size <= 38 for size in np.diff(first))
    store = stores(tmp_path, manifest)[4, "a"]
    order = [int(store[i].documents[0]) for i in range(101)]
    assert sorted(order) == list(range(101)) and sum(a < 34 for a in order[:34]) < 25


@pytest.mark.parametrize(
    ("low", "high", "row_lengths"),
    [(215, 250, [512, 4096]), (10, 60, [512, 4096]), (20, 3000, [512, 4096]), (1366, 1500, [4096])],
)
def test_rows_are_full_whatever_the_documents(low, high, row_lengths):
    lengths = np.random.default_rng(0).integers(low, high, 9000)
    borders = packing_borders(lengths, row_lengths, 4096)
    assert max(np.diff(borders)) <= 4096
    for row_length in row_lengths:
        windows = [
            pack_documents(np.arange(start, end), lengths[start:end], row_length)
            for start, end in itertools.pairwise(borders)
        ]
        rows = [pieces.count for pieces in windows]
        # The last row of a source may be empty but for one token; no border can help that.
        filled = sum(int(pieces.lengths.sum()) for pieces in windows) / (sum(rows) - 1) / row_length
        assert filled >= 0.999
        in_pieces = sum(int((np.unique(p.documents, return_counts=True)[1] > 1).sum()) for p in windows)
        if high <= row_length:
            assert in_pieces / len(lengths) < (0.31 if low > 1000 else 0.1)


def test_wide_vocabularies_keep_their_ids(tmp_path):
    tokenizer = toy_rows.ToyTokenizer(133_120)
    manifest = pack({"a": lambda: iter([toy_rows.document(0, 5)])}, tokenizer, tmp_path, [8], 1, 0)
    assert stores(tmp_path, manifest)[8, "a"][0].tokens.dtype == np.uint32


def test_bad_input(tmp_path):
    for lengths in ([], [0, 0]):
        with pytest.raises(UserError, match="source 'a' holds no document with text"):
            toy_rows.pack_lengths(tmp_path / "empty", {"a": lengths}, [8], 4)
    with pytest.raises(UserError, match="no source to pack"):
        toy_rows.pack_lengths(tmp_path / "none", {}, [8], 4)
    for row_lengths, window in (([], 4), ([1], 4), ([8], 0)):
        with pytest.raises(UserError, match="row_lengths"):
            toy_rows.pack_lengths(tmp_path / "none", {"a": [3]}, row_lengths, window)
    mixed = [toy_rows.document(0, 3), toy_rows.document(1, 3, domain="medical")]
    with pytest.raises(UserError, match="domains general and medical"):
        pack({"a": lambda: iter(mixed)}, toy_rows.ToyTokenizer(), tmp_path, [8], 4, 0)


def test_two_languages_in_one_source(tmp_path):
    mixed = [toy_rows.document(0, 3, language="zh"), toy_rows.document(1, 3)]
    manifest = pack({"a": lambda: iter(mixed)}, toy_rows.ToyTokenizer(), tmp_path, [8], 4, 0)
    assert manifest.sources["a"].language == "en+zh"


def test_progress_reaches_its_total(tmp_path):
    seen = collections.Counter()
    manifest = toy_rows.pack_lengths(
        tmp_path, {"a": [3] * 20}, [4, 8], 5, progress=lambda s, phase, n: seen.update({phase: n})
    )
    size = manifest.sources["a"].utf8_bytes
    assert seen == {"encoded": size, "packed": 2 * size}


def test_bad_manifests(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        Manifest.load(tmp_path)
    toy_rows.pack_lengths(tmp_path, {"a": [3]}, [8], 4)
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    saved = json.loads(whole)
    without = {key: value for key, value in saved.items() if key != "seed"}
    for damaged in (whole[:40], "", "[]", "{}", json.dumps({**saved, "extra": 1}), json.dumps(without)):
        path.write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            Manifest.load(tmp_path)
    path.write_text(json.dumps({**saved, "format": 9}))
    with pytest.raises(UserError, match="format 9"):
        Manifest.load(tmp_path)


def test_permutations_never_change():
    assert permutation(8, "rows", 0, "a").tolist() == [2, 6, 3, 0, 1, 5, 7, 4]
    assert sorted(permutation(1000, 1)) == list(range(1000))
    assert permutation(50, 1).tolist() != permutation(50, 2).tolist()
