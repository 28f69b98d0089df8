"""Rows made by hand or drawn by hypothesis."""

import numpy as np
from hypothesis import strategies as st

from m1jax.rows.record import Row
from m1jax.rows.spans import NO_SPANS, Spans

FIELDS = ("tokens", "lengths", "documents", "offsets")
WEIGHTS = (0.0, 0.25, 0.5, 2.0, 7.5)


def make_row(row_length, lengths, first=0, dtype=np.uint16, spans=NO_SPANS, columns=None):
    """A row whose tokens count upwards from `first`."""
    numbers = np.arange(len(lengths), dtype=np.uint32)
    tokens = np.arange(first, first + sum(lengths)).astype(dtype)
    pieces = np.array(lengths, np.uint32), numbers + 70_000, numbers * 5
    return Row(row_length, tokens, *pieces, spans, columns or {})


def spans_of(weights, borders=()):
    """The runs of tokens whose weight is not 1, from a weight a token; no run goes over a border."""
    runs = []
    for at, weight in enumerate(weights):
        if weight != 1:
            if runs and sum(runs[-1][:2]) == at and runs[-1][2] == weight and at not in borders:
                runs[-1][1] += 1
            else:
                runs.append([at, 1, weight])
    starts, lengths, values = (np.array([run[i] for run in runs]) for i in range(3))
    return Spans(starts.astype(np.uint32), lengths.astype(np.uint32), values.astype(np.float32))


@st.composite
def columns_of(draw, pieces):
    found = {}
    for name in draw(st.sets(st.sampled_from(["pair", "side", "größe"]), max_size=2)):
        integer = st.integers(-(2**31), 2**31 - 1)
        number = st.floats(-100, 100, width=32)
        dtype, values = draw(st.sampled_from([(np.int32, integer), (np.float32, number)]))
        found[name] = np.array(draw(st.lists(values, min_size=pieces, max_size=pieces)), dtype)
    return found


@st.composite
def rows(draw, row_length=None):
    """Rows with pieces of any lengths; a weight for every token in about half of them, columns in some."""
    row_length = row_length or draw(st.integers(2, 40))
    lengths, room = [], row_length
    while room and draw(st.booleans()):
        lengths.append(draw(st.integers(1, room)))
        room -= lengths[-1]
    weights = [1.0] * sum(lengths)
    if draw(st.booleans()):
        weights = draw(st.lists(st.sampled_from((1.0, *WEIGHTS)), min_size=len(weights), max_size=len(weights)))
    spans = spans_of(weights, np.cumsum([0, *lengths]))
    dtype = draw(st.sampled_from([np.uint16, np.uint32]))
    return make_row(row_length, lengths, draw(st.integers(1, 1000)), dtype, spans, draw(columns_of(len(lengths))))
