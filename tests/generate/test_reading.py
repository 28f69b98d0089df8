import itertools

from hypothesis import given
from hypothesis import strategies as st

from m1jax.generate.reading import pieces, stops

CHUNK = 256


@given(st.integers(0, 5000), st.integers(1, 3000))
def test_pieces_end_at_the_end_and_are_read_with_little_padding(begin, count):
    found = [begin, *pieces(begin, begin + count, CHUNK)]
    sizes = [end - start for start, end in itertools.pairwise(found)]
    assert found[-1] == begin + count and all(0 < size <= CHUNK for size in sizes)
    assert sizes[: count // CHUNK] == [CHUNK] * (count // CHUNK), "whole chunks first: later pieces cost more room"
    padded = [max(16, 1 << (size - 1).bit_length()) for size in sizes]
    assert all(wide - size <= 64 for wide, size in zip(padded, sizes, strict=True))


@given(st.integers(0, 500), st.lists(st.integers(0, 1500), max_size=3), st.integers(1, 1000))
def test_reading_stops_at_every_cut_on_the_way(begin, cuts, count):
    end = begin + count
    found = stops(begin, cuts, end, CHUNK, whole_chunks=False)
    assert found == sorted(set(found)) and found[-1] == end
    assert {cut for cut in cuts if begin < cut < end} <= set(found)


@given(st.integers(0, 5), st.integers(1, 2000))
def test_whole_chunks_are_the_same_whatever_was_read_before(chunks, count):
    end = chunks * CHUNK + count
    fresh = stops(0, [], end, CHUNK, whole_chunks=True)
    assert stops(chunks * CHUNK, [], end, CHUNK, whole_chunks=True) == [stop for stop in fresh if stop > chunks * CHUNK]
