"""The values at the peak of a heap, from events written by hand."""

import pytest

from m1jax.plan import buffers

ALLOCATED, FREED, SHARED = 0, 1, 2
SIZES = {1: 60, 2: 100, 3: 60, 4: 10}


def message(*parts):
    out = b""
    for number, value in parts:
        if isinstance(value, bytes):
            out += bytes([number << 3 | 2, len(value)]) + value
        else:
            out += bytes([number << 3, value])
    return out


def peak(*events):
    """Events (kind, value[, whose place it shares])."""
    trace = b"".join(
        message((1, message((1, kind), (2, number), *((5, owner) for owner in shared))))
        for kind, number, *shared in events
    )
    return buffers._at_peak({4: [memoryview(trace)]}, SIZES, set(SIZES))


def test_the_peak_is_where_most_bytes_live_at_once():
    assert peak((ALLOCATED, 1), (ALLOCATED, 4), (FREED, 1), (ALLOCATED, 2), (FREED, 4), (FREED, 2)) == {2, 4}


def test_a_place_is_held_as_long_as_a_sharer_lives():
    events = [(ALLOCATED, 1), (SHARED, 3, 1), (FREED, 1), (ALLOCATED, 2), (FREED, 3), (ALLOCATED, 4), (FREED, 2)]
    assert peak(*events) == {1, 2}


@pytest.mark.parametrize("last", [(FREED, 3), (FREED, 1)])
def test_a_shared_place_counts_once(last):
    assert peak((ALLOCATED, 1), (SHARED, 3, 1), last, (ALLOCATED, 4)) == {1, 4}
