import dataclasses
import itertools
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.loader import Loader
from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.manifest import Manifest, open_stores, row_path
from m1jax.rows.packing import pack
from m1jax.text.documents import BATCH_ARRAYS
from tests.rows import toy_rows

LENGTHS = {"a": [(i * 37) % 90 + 1 for i in range(60)], "b": [5] * 30, "c": [200, 3]}
STAGES = (
    toy_rows.stage("easy", 16, 8, 6, {"domain:general": 0.8, "b": 0.2}),
    toy_rows.stage("more", 16, 4, 5, {"a": 0.5, "b": 0.5}),
    toy_rows.stage("long", 64, 4, 6, {"a": 0.6, "b": 0.3, "c": 0.1}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows")
    toy_rows.pack_lengths(path, LENGTHS, [16, 64], 20, domains={"b": "medical"})
    return path


def make(folder, index=0, count=1, stages=STAGES, columns=()):
    manifest = Manifest.load(folder)
    curriculum = Curriculum(stages, manifest, 0)
    return Loader(curriculum, open_stores(folder, manifest, curriculum.used), index, count, columns)


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


def reading_threads():
    return [thread for thread in threading.enumerate() if "prefetch" in thread.name]


@pytest.fixture(scope="module")
def batches(folder):
    return list(make(folder).batches(0, 17))


def test_batches_are_the_rows_that_the_curriculum_names(folder, batches):
    manifest = Manifest.load(folder)
    curriculum = Curriculum(STAGES, manifest, 0)
    stores = open_stores(folder, manifest, curriculum.used)
    row = 0
    for step, batch in enumerate(batches):
        stage = STAGES[curriculum.timeline.stage_index(step)]
        places = [curriculum.locate(row + i) for i in range(stage.global_batch)]
        row += stage.global_batch
        equal(batch, expand([stores[stage.row_length, place.source][place.row] for place in places]))
        assert batch["tokens"].shape == (stage.global_batch, stage.row_length)
    assert len(batches) == 17 and row == curriculum.timeline.rows_before(17)


def test_arrays_are_what_a_model_reads(batches):
    for batch in batches:
        assert set(batch) == {"tokens", "targets", "segment_ids", "positions", "weights"}
        assert {name: array.dtype.name for name, array in batch.items()} == {
            **dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), "int32"),
            "weights": "float32",
        }
        assert batch["weights"].sum() > 0


@given(st.integers(0, 17), st.integers(0, 17))
@settings(max_examples=15, deadline=None)
def test_going_on_is_the_tail(folder, batches, first, last):
    first, last = min(first, last), max(first, last)
    went_on = list(make(folder).batches(first, last))
    assert len(went_on) == last - first
    for one, other in zip(went_on, batches[first:last], strict=True):
        equal(one, other)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_reads_the_same_batches(folder, batches, count):
    shares = [list(make(folder, index, count).batches(0, 17)) for index in range(count)]
    for step, batch in enumerate(batches):
        equal({name: np.concatenate([share[step][name] for share in shares]) for name in batch}, batch)


def test_a_batch_that_processes_do_not_divide(folder):
    with pytest.raises(UserError, match="stage 'easy': global_batch = 8 is not divided by 3 processes"):
        make(folder, 0, 3)
    with pytest.raises(UserError, match="stage 'more'"):
        make(folder, 0, 8)


def test_a_column_that_a_source_lacks(folder):
    with pytest.raises(UserError, match=r"source 'a' has no column 'pair' \(it has: none\).*run `m1 pack` again"):
        make(folder, columns=["pair"])


def numbered(folder, kinds):
    """Rows of two sources whose documents carry their number as `pair`, and a `side` of a kind for each source."""
    sources = {}
    for name, kind in kinds.items():
        documents = [
            dataclasses.replace(toy_rows.document(i, 5, name), columns={"pair": i // 2, "side": kind(i % 2)})
            for i in range(40)
        ]
        sources[name] = lambda some=documents: iter(some)
    pack(sources, toy_rows.ToyTokenizer(), folder, [16], 20, 0)
    return (toy_rows.stage("s", 16, 4, 6, {"a": 0.5, "b": 0.5}),)


def test_both_sides_of_a_pair_are_in_one_row_of_the_batch(tmp_path):
    stages = numbered(tmp_path, {"a": int, "b": int})
    plain, loader = make(tmp_path, stages=stages), make(tmp_path, stages=stages, columns=["side", "pair"])
    for step, batch in enumerate(loader.batches(0, 6)):
        assert batch["pair"].dtype == batch["side"].dtype == np.int32
        equal({name: batch[name] for name in BATCH_ARRAYS}, plain.batch(step))
        for ids, pairs, sides in zip(batch["segment_ids"], batch["pair"], batch["side"], strict=True):
            pieces = {(int(pair), int(side)) for segment, pair, side in zip(ids, pairs, sides, strict=True) if segment}
            assert pieces == {(pair, side) for pair, _ in pieces for side in (0, 1)}
            assert not pairs[ids == 0].any() and not sides[ids == 0].any()


def test_a_column_of_two_kinds(tmp_path):
    stages = numbered(tmp_path, {"a": int, "b": float})
    assert make(tmp_path, stages=stages, columns=["pair"]).batch(0)["pair"].any()
    with pytest.raises(UserError, match="column 'side' is float32 in source 'b' and int32 in source 'a'"):
        make(tmp_path, stages=stages, columns=["side"])


def test_every_target_of_an_epoch_reaches_a_batch_once(folder):
    manifest = Manifest.load(folder)
    rows = manifest.sources["a"].files[16].rows
    loader = make(folder, stages=(toy_rows.stage("all", 16, rows, 1, {"a": 1.0}),))
    (batch,) = loader.batches(0, 1)
    targets = sorted(batch["targets"][batch["weights"] > 0].tolist())
    expected = [token for i, n in enumerate(LENGTHS["a"]) for token in toy_rows.tokens_of(i, n)[1:]]
    assert targets == sorted(expected)


def test_documents_of_a_step(folder, batches):
    loader = make(folder, 1, 2)
    for step in (0, 8, 16):
        served = loader.documents(step)
        batch = {name: np.split(array, 2)[1] for name, array in batches[step].items()}
        assert len(served) == len(batch["tokens"])
        for i, row in enumerate(served):
            expected = []
            for document, offset, length in row.pieces:
                own = toy_rows.tokens_of(document, LENGTHS[row.location.source][document])
                expected += own[offset : offset + length]
            assert batch["tokens"][i, : len(expected)].tolist() == expected
            assert row.number == loader._curriculum.timeline.rows_before(step) + len(served) + i
            assert row.location.step == step


def test_an_abandoned_iterator_leaves_no_thread(folder):
    assert not reading_threads()
    iterator = make(folder).batches(0, 17)
    next(iterator)
    assert reading_threads()
    iterator.close()
    assert not reading_threads()
    assert len(list(make(folder).batches(3, 17))) == 14 and not reading_threads()
    assert list(make(folder).batches(5, 5)) == []


def test_errors_of_the_reading_thread_reach_the_caller(tmp_path):
    toy_rows.pack_lengths(tmp_path, LENGTHS, [16, 64], 20, domains={"b": "medical"})
    loader = make(tmp_path)
    path = row_path(tmp_path, 64, "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(len(whole) - 400) + whole[-200:])
    read = 0
    with pytest.raises(UserError, match=r"64/a\.array_record"):
        for _ in loader.batches(0, 17):
            read += 1
    assert 11 <= read < 17 and not reading_threads()
    path.unlink()
    with pytest.raises(UserError, match=r"64/a\.array_record is missing"):
        make(tmp_path)


def test_rows_of_another_length_in_the_right_place(tmp_path):
    toy_rows.pack_lengths(tmp_path, {"a": [15] * 7}, [16, 17], 20)
    row_path(tmp_path, 16, "a").replace(row_path(tmp_path, 17, "a"))
    loader = make(tmp_path, stages=(toy_rows.stage("s", 17, 1, 1, {"a": 1}),))
    with pytest.raises(UserError, match="holds rows of 16 tokens instead of 17"):
        loader.batch(0)


def test_a_process_that_ends_while_reading_does_not_hang(folder, tmp_path):
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.curriculum import test_loader
        iterator = test_loader.make(Path({str(folder)!r})).batches(0, 17)
        print(next(iterator)["tokens"].shape)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(8, 16)\n" and not done.stderr


def test_no_batch_shares_memory_with_another(folder):
    """jax may read the host's array itself where it puts it on a device: one that is used again would change it."""
    batches = list(make(folder).batches(0, 4))
    arrays = [array for batch in batches for array in batch.values()]
    for one, other in itertools.combinations(arrays, 2):
        assert not np.shares_memory(one, other)
