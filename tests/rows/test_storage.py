"""Rows in a bucket: the same rows, whatever the service does, or one sentence."""

import concurrent.futures
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import artefact
from m1jax.curriculum import ahead
from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.loader import Loader
from m1jax.errors import UserError
from m1jax.rows import packed, storage
from m1jax.rows.ranges import RangeRows, index_file, reading_threads, write_index
from m1jax.rows.record import Row
from m1jax.rows.storage import Storage
from m1jax.rows.store import RowStore, RowWriter
from tests.rows import stand_in, toy_rows
from tests.rows.made_rows import spans_of

LENGTHS = {"a": [(i * 37) % 300 + 1 for i in range(120)], "b": [5] * 60}
STAGES = (toy_rows.stage("one", 64, 8, 12, {"a": 0.8, "b": 0.2}), toy_rows.stage("two", 16, 8, 4, {"a": 1.0}))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Packed rows, and a server of them."""
    folder = tmp_path_factory.mktemp("bucket") / "rows"
    with artefact.building(folder, "rows", "key") as partial:
        toy_rows.pack_lengths(partial, LENGTHS, [16, 64], 40)
    with stand_in.serving(folder.parent) as server, pytest.MonkeyPatch.context() as patch:
        for key, value in stand_in.environment(server).items():
            patch.setenv(key, value)
        yield folder, server


def loader_of(address, index=0, count=1):
    manifest = packed.load_manifest(str(address))
    curriculum = Curriculum(STAGES, manifest, 0)
    return Loader(curriculum, packed.open_stores(str(address), manifest, curriculum.used), index, count)


def same_batches(one, other):
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@given(st.lists(st.tuples(st.integers(2, 40_000), st.integers(1, 300)), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_ranges_are_what_array_record_reads(tmp_path_factory, sizes):
    """Rows of any size, over the borders of blocks of 64 KiB, against ArrayRecord's own reader."""
    folder = tmp_path_factory.mktemp("ranges")
    path = folder / "x.array_record"
    rng = np.random.default_rng(len(sizes))
    with RowWriter(path) as writer:
        for size, pieces in sizes:
            lengths = np.diff(np.unique([0, size, *rng.integers(1, size, pieces)])).astype(np.uint32)
            numbers = (rng.integers(0, 2**32, len(lengths), np.uint32) for _ in range(2))
            spans = spans_of(rng.choice([0.0, 1.0], size))
            columns = {"pair": np.arange(len(lengths), dtype=np.int32)}
            tokens = rng.integers(0, 2**16, size).astype(np.uint16)
            writer.write(Row(40_000, tokens, lengths, *numbers, spans, columns))
    write_index(path)
    assert os.path.getsize(index_file(path)) == 8 * (len(sizes) + 1)
    store = RowStore(path, len(sizes))
    with reading_threads() as pool:
        ranges = RangeRows(Storage(f"file://{folder}"), path.name, len(sizes), 40_000, pool)
        ranges.check()
        for i in reversed(range(len(sizes))):
            for name in ("row_length", "tokens", "lengths", "documents", "offsets"):
                np.testing.assert_array_equal(getattr(ranges[i], name), getattr(store[i], name))
            np.testing.assert_array_equal(ranges[i].spans.starts, store[i].spans.starts)
            np.testing.assert_array_equal(ranges[i].columns["pair"], store[i].columns["pair"])
        for index in (-1, len(sizes)):
            with pytest.raises(IndexError):
                ranges[index]


@pytest.mark.parametrize("bucket", ["plain", "slow", "busy", "torn"])
def test_a_bucket_gives_the_batches_of_a_disk(served, bucket):
    folder, server = served
    expected = list(loader_of(folder).batches(9, 15))
    same_batches(list(loader_of(f"gs://{bucket}/rows").batches(9, 15)), expected)
    assert server.requests[bucket] > 6 * 8


def test_each_host_reads_only_its_share(served):
    _, server = served
    whole = loader_of("gs://plain/rows")
    before = server.bytes["plain"]
    list(whole.batches(0, 16))
    everything = server.bytes["plain"] - before
    shares = [loader_of("gs://plain/rows", index, 4) for index in range(4)]
    before = server.bytes["plain"]
    list(shares[1].batches(0, 16))
    index_pages = 3 * 8 * 2000
    assert server.bytes["plain"] - before < everything / 4 * 1.3 + index_pages


def test_latency_is_hidden_by_asking_early(served):
    """Every row of a batch, and the batches after it, are asked for at once: no row waits for another."""
    _, server = served
    loader = loader_of("gs://slow/rows")
    server.most_under_way = 0
    batches = loader.batches(0, 16)
    list(batches)
    assert server.most_under_way >= 3 * 8


def test_depth_follows_latency(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ahead.time, "perf_counter", lambda: now[0])
    latency = 1.0

    def request(step):
        asked.append(step)
        future = concurrent.futures.Future()
        future.set_result((step, now[0] + latency))
        return [future]

    asked = []
    rows = ahead.Ahead(request, 400, 32)
    for step in range(100):  # a step every 0.1 s: ten in the time of an answer, and one more
        assert rows.rows(step) == [step]
        now[0] += 0.1
    assert rows.depth in (11, 12)
    latency = 0.05
    for step in range(100, 200):
        rows.rows(step)
        now[0] += 0.1
    assert rows.depth == 2
    latency = 60.0
    for step in range(200, 400):
        rows.rows(step)
        now[0] += 0.1
    assert rows.depth == 32 and asked == list(range(400))


SENTENCES = {
    "denied": r"gs://denied/rows/m1jax\.json cannot be read: access was denied: give this machine's account the right",
    "missing": r"gs://plain/nothing/m1jax\.json is missing",
    "cut": r"gs://cut/rows/rows/\d+/\w\.array_record cannot be read: it is cut short: copy the packed rows",
}


@pytest.mark.parametrize("trouble", SENTENCES)
def test_what_cannot_be_read_is_one_sentence(served, trouble):
    address = "gs://plain/nothing" if trouble == "missing" else f"gs://{trouble}/rows"
    with pytest.raises(UserError, match=SENTENCES[trouble]):
        loader_of(address)


def test_a_silent_service_is_given_up(served):
    with pytest.raises(UserError, match=r"gs://silent/x/y did not answer within 1 s: check the network"):
        Storage("gs://silent/x", deadline=1).read("y")
    assert storage.DEADLINE < 30


def test_no_address_of_a_bucket():
    with pytest.raises(UserError, match=r"cannot be opened .*: write gs://BUCKET/FOLDER"):
        Storage("gs://No_Bucket!!/x")


def test_damage_behind_an_address(tmp_path):
    toy_rows.pack_lengths(tmp_path, {"a": [15] * 40}, [16], 20)
    manifest = packed.Manifest.load(tmp_path)
    (file,) = manifest.sources["a"].files.values()
    path = tmp_path / "rows" / "16" / "a.array_record"
    whole = path.read_bytes()

    def store(length=16):
        return RangeRows(Storage(f"file://{tmp_path}"), "rows/16/a.array_record", file.rows, length, reading_threads())

    store().check()
    with pytest.raises(UserError, match=r"row \d+ of .* is damaged \(it has 16 tokens instead of 32\)"):
        store(32).check()
    path.write_bytes(whole[:64] + bytes(200) + whole[264:])
    with pytest.raises(UserError, match=r"row 0 of file://.*a\.array_record is damaged"):
        store().check()
    path.write_bytes(whole)
    index = tmp_path / "rows" / "16" / "a.index"
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"a\.index cannot be read: it is cut short"):
        store().check()
    index.unlink()
    with pytest.raises(UserError, match=r"a\.index is missing"):
        store().check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bucket", "words"),
    [("silent", "did not answer within 25 s"), ("refusing", "keeps refusing because of too many requests (429)")],
)
def test_never_a_hang(served, bucket, words):
    """A process that meets a dead service ends by itself, with one sentence."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.rows import test_storage
        try:
            test_storage.loader_of("gs://{bucket}/rows")
        except test_storage.UserError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and words in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
