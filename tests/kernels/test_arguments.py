"""The types that carry attention's arguments, as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m1jax import kernels
from m1jax.kernels.arguments import map_arrays
from tests.kernels.rows import arguments, drawn, rows_of


def call(**rows):
    ids, positions = rows_of([3, 2], [8], S=8)
    return arguments(drawn(0, 2, 8, 4, 2, 6), ids, positions, 3, **rows)


def test_an_int_offset_is_static_under_jit_and_an_array_is_not():
    found = []

    def note(rows):
        found.append(rows.q_offset)
        return rows

    for offset in (4, jnp.int32(4)):
        back = jax.jit(note)(call(q_offset=offset)[4])
        assert int(back.q_offset) == 4 and isinstance(back.q_offset, int) == isinstance(offset, int)
    assert found[0] == 4 and isinstance(found[1], jax.core.Tracer)


def test_what_is_static_is_not_a_leaf():
    layer, rows = call(prev_kv=(jnp.zeros((2, 2, 6)), jnp.ones((2, 2, 6))))[3:]
    assert [leaf.shape for leaf in jax.tree.leaves(layer)] == [(2, 2), (2, 2), (3,)]
    again = jax.tree.map(lambda leaf: leaf + 1, layer)
    assert (again.window, again.scale, again.impl) == (3, 6**-0.5, "reference")
    np.testing.assert_array_equal(again.conv_v, layer.conv_v + 1)
    moved = jax.tree.map(lambda leaf: leaf + 1, rows)
    np.testing.assert_array_equal(moved.positions, rows.positions + 1)
    np.testing.assert_array_equal(moved.segment_ids, rows.segment_ids + 1)
    assert [float(x.mean()) for x in moved.prev_kv] == [1, 2] and moved.q_offset == 0


@pytest.mark.parametrize("offset", [2, jnp.int32(2)], ids=["static", "array"])
def test_every_array_has_a_name_for_each_of_its_axes(offset):
    """Attention over a mesh makes its specs of them: one too many, or a field without, would not be split."""
    layer, rows = call(prev_kv=(jnp.zeros((2, 2, 6)),) * 2, q_offset=offset)[3:]
    for given in (layer, rows):
        seen = []

        def note(array, axes, seen=seen):
            assert array.ndim == len(axes)
            seen.append(array)
            return array

        assert jax.tree.structure(map_arrays(note, given)) == jax.tree.structure(given)
        assert len(seen) == len(jax.tree.leaves(given))


def test_rows_of_one_document_are_rows_with_one_id():
    ids, positions = rows_of([8], [8], S=8)
    x = drawn(1, 2, 8, 4, 2, 6)
    want, found = (kernels.attention(*arguments(x, given, positions, 3)) for given in (ids, None))
    np.testing.assert_array_equal(found, want)
