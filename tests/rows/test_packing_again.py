"""Packing with any number of threads, killed and started again, by difficulty: the same rows, nothing lost."""

import itertools
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.rows.manifest import Manifest, bucket_name, document_ids, open_stores
from m1jax.rows.packing import pack
from m1jax.text import set_aside
from m1jax.text.documents import Document, Part
from tests.rows import toy_rows

LENGTHS = [(i * 37) % 190 + 1 for i in range(700)]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def documents(count=700, weight=0.5):
    """Every third document has a prompt of two ids and an answer of a weight; each is one text to encode."""
    for i in range(count):
        plain = toy_rows.document(i, LENGTHS[i])
        prompt, answer = Part(ids=(5, 6), weight=0.0), Part(plain.text, weight=weight)
        yield plain if i % 3 else toy_rows.with_parts(plain, prompt, answer)


def pack_two(folder, tokenizer=None, text=documents, **rest):
    folder.mkdir(parents=True, exist_ok=True)
    plain = [toy_rows.document(i, 50, "b") for i in range(40)]
    pairs = [toy_rows.with_parts(d, Part(d.text), columns={"pair": i % 20}) for i, d in enumerate(plain)]
    sources = {"a": text, "b": lambda: iter(pairs)}
    return pack(sources, tokenizer or toy_rows.ToyTokenizer(), folder, [104, 208], 100, 0, **rest)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")
    pack_two(folder)
    return tree(folder)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path, fresh, workers, monkeypatch):
    monkeypatch.setattr(set_aside, "_BATCH_ROWS", 16)  # many batches, so that threads can overtake each other
    tokenizer = toy_rows.ToyTokenizer()
    encode = tokenizer.encode_arrays

    def slow(texts):
        time.sleep(random.random() / 200)
        return encode(texts)

    tokenizer.encode_arrays = slow
    pack_two(tmp_path, tokenizer, workers=workers)
    assert tree(tmp_path) == fresh


class Counting(toy_rows.ToyTokenizer):
    """Counts texts, and fails at a given one."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.texts, self.fails_at = 0, fails_at

    def encode_arrays(self, texts):
        self.texts += len(texts)
        if self.fails_at is not None and self.texts >= self.fails_at:
            raise KeyError
        return super().encode_arrays(texts)


@given(fails_at=st.integers(1, 740), damage=st.sampled_from(["none", "tokens cut", "tokens", "journal cut", "journal"]))
@settings(max_examples=15, deadline=None)
def test_what_was_encoded_is_found_again(tmp_path_factory, fresh, fails_at, damage):
    folder = tmp_path_factory.mktemp("again")
    spool = folder / "spool"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_aside, "_BATCH_ROWS", 16)
        with pytest.raises(KeyError):
            pack_two(folder / "first", Counting(fails_at), spool=spool)
        for path in spool.glob("*.tokens" if "tokens" in damage else "*.journal"):
            whole = path.read_bytes()
            middle = len(whole) // 2
            changed = {"none": whole, "cut": whole[:middle]}
            path.write_bytes(changed.get(damage.split()[-1], whole[:middle] + b"\xff" + whole[middle + 1 :]))
        second = Counting()
        (folder / "second").mkdir()
        pack_two(folder / "second", second, spool=spool)
    assert tree(folder / "second") == fresh
    whole = max(0, fails_at - 1) // 16 * 16
    if damage == "none":
        assert second.texts <= 740 - min(whole, 700)
    assert (spool / "a.tokens").is_file()


def test_a_spool_of_other_text_is_not_used(tmp_path, fresh):
    other = lambda: (Document(d.id, d.text[::-1], d.source, d.language, d.domain) for d in documents())  # noqa: E731
    pack_two(tmp_path / "x", text=other, spool=tmp_path / "spool")
    pack_two(tmp_path / "y", spool=tmp_path / "spool")
    assert tree(tmp_path / "y") == fresh


def test_a_spool_of_other_weights_is_not_used(tmp_path, fresh):
    pack_two(tmp_path / "x", text=lambda: documents(weight=0.25), spool=tmp_path / "spool")
    pack_two(tmp_path / "y", spool=tmp_path / "spool")
    assert tree(tmp_path / "y") == fresh
    rows = "rows/104/a.array_record"
    assert tree(tmp_path / "x")[rows] != fresh[rows] and len(tree(tmp_path / "x")[rows]) == len(fresh[rows])


@pytest.mark.slow
def test_killed_while_encoding_it_goes_on(tmp_path, fresh):
    """SIGKILL in a real process: nothing is there that reads as whole, and the second start encodes only the rest."""
    program = textwrap.dedent(
        f"""
        import sys, time, pathlib
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.rows import toy_rows, test_packing_again as here
        from m1jax import artefact
        from m1jax.text import set_aside
        set_aside._BATCH_ROWS = 16
        class Slow(here.Counting):
            def encode_arrays(self, texts):
                time.sleep(float(sys.argv[2]))
                return super().encode_arrays(texts)
        folder = pathlib.Path(sys.argv[1])
        tokenizer = Slow()
        with artefact.building(folder / "rows", "rows", "key") as rows:
            here.pack_two(rows, tokenizer, spool=folder / "spool", workers=2)
        print(tokenizer.texts)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen([*command, "0.1"])
    journal = tmp_path / "spool" / "a.journal"
    while process.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "rows").exists()
    encoded = subprocess.run([*command, "0"], check=True, capture_output=True, text=True).stdout
    assert 0 < int(encoded) <= 740 - 160
    found = tree(tmp_path / "rows")
    assert found.pop("m1jax.json")
    assert found == fresh
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "spool"]


@given(numbers=st.lists(st.floats(-5, 5), min_size=12, max_size=60, unique=True), buckets=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_difficulty_divides_a_source(tmp_path_factory, numbers, buckets):
    folder = tmp_path_factory.mktemp("difficulty")
    text = lambda: (  # noqa: E731
        Document(f"a/{i}", toy_rows.document(i, 9).text, "a", "en", "medical", number)
        for i, number in enumerate(numbers)
    )
    plain = lambda: (toy_rows.document(i, 9, "b") for i in range(8))  # noqa: E731
    sources = {"a": text, "b": plain}
    manifest = pack(sources, toy_rows.ToyTokenizer(), folder, [16], 5, 0, difficulty_buckets=buckets)
    names = [bucket_name("a", i) for i in range(buckets)]
    assert list(manifest.sources) == [*names, "b"] and manifest == Manifest.load(folder)
    assert not manifest.sources["b"].of and manifest.sources["b"].buckets == 1
    seen = []
    for bucket, name in enumerate(names):
        source = manifest.sources[name]
        assert (source.of, source.bucket, source.buckets, source.domain) == ("a", bucket, buckets, "medical")
        (store,) = open_stores(folder, manifest, [(16, name)]).values()
        packed = {int(d) for row in range(len(store)) for d in store[row].documents}
        ids = document_ids(folder, "a", packed)
        values = [numbers[int(ids[number].id.removeprefix("a/"))] for number in packed]
        assert source.difficulty == (min(values), max(values)) and len(packed) == source.documents
        seen.append(packed)
    assert sorted(itertools.chain.from_iterable(seen)) == list(range(len(numbers)))
    assert all(manifest.sources[a].difficulty < manifest.sources[b].difficulty for a, b in itertools.pairwise(names))
    assert np.ptp([len(packed) for packed in seen]) <= 2
    listed = pq.read_table(folder / "documents" / "a.parquet").column("difficulty").to_pylist()
    assert listed == numbers


def test_difficulty_that_cannot_divide(tmp_path):
    def run(*numbers):
        text = lambda: (Document(str(i), "word", "a", "en", "general", number) for i, number in enumerate(numbers))  # noqa: E731
        pack({"a": text}, toy_rows.ToyTokenizer(), tmp_path, [16], 5, 0, difficulty_buckets=2)

    with pytest.raises(UserError, match="source 'a': 1 of 3 documents have no difficulty"):
        run(1.0, None, 2.0)
    with pytest.raises(UserError, match="takes too few values for 2 buckets"):
        run(1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="no document has a difficulty"):
        run(None, None)
