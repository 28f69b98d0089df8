"""Programs that this machine compiles, read from their bytes: what is known of them is counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m1jax.plan import collectives, hlo


def module_of(function, *args, **jit):
    compiled = jax.jit(function, **jit).lower(*args).compile()
    return hlo.read(compiled.runtime_executable().hlo_modules()[0].as_serialized_hlo_module_proto())


def mesh_of(**axes):
    devices = np.asarray(jax.devices()[: int(np.prod(list(axes.values())))])
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes))


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def array(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def test_trip_counts_multiply_through_nested_loops():
    def inner(x, _):
        return jnp.sin(x) @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=5)[0], None

    module = module_of(lambda x: jax.lax.scan(outer, x, length=7)[0], jnp.ones((64, 64)))
    loops = {times * module.trips(i, where) for i, times, where in module.executed() if i.opcode == "while"}
    assert loops == {7, 35}


@pytest.mark.parametrize("loops", [1, 6])
def test_collectives_have_kind_axis_count_and_bytes(loops):
    mesh = mesh_of(data=2, fsdp=4)
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("fsdp"))

    def gathered(x, _):
        x = jax.lax.with_sharding_constraint(x, whole)
        return jax.lax.with_sharding_constraint(jnp.cos(x), rows), None

    module = module_of(lambda x: jax.lax.scan(gathered, x, length=loops)[0], array(mesh, (64, 32), "fsdp"))
    (found,) = collectives.summary(module, dict(mesh.shape))
    assert (found.kind, found.axes, found.count) == ("all-gather", "fsdp", loops)
    assert found.bytes == loops * 64 * 32 * 4 * 3 / 4


def test_an_all_reduce_over_two_axes_moves_twice_its_share():
    mesh = mesh_of(replica=2, data=2, tensor=2)
    module = module_of(
        lambda x: x.sum(0),
        array(mesh, (8, 128), ("replica", "tensor")),
        out_shardings=replicated(mesh),
    )
    (found,) = collectives.summary(module, dict(mesh.shape), slices=2)
    assert (found.kind, found.axes, found.crosses_slices) == ("all-reduce", "replica+tensor", True)
    assert found.bytes == 2 * 128 * 4 * 3 / 4


def test_a_gather_of_a_whole_stack_is_named():
    mesh = mesh_of(fsdp=4)
    module = module_of(
        lambda x: jnp.sin(x) + 1,
        array(mesh, (6, 32, 64), None, "fsdp"),
        out_shardings=replicated(mesh),
    )
    assert len(collectives.whole_gathers(module, [(6, 32, 64)])) == 1
    assert collectives.whole_gathers(module, [(7, 32, 64)]) == []


@given(st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_fields_of_a_protocol_buffer(number, content):
    def varint(value):
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    data = varint(3 << 3) + varint(number) + varint(1000 << 3 | 2) + varint(len(content)) + content
    found = list(hlo.fields(memoryview(data)))
    assert found[0] == (3, number) and found[1][0] == 1000 and bytes(found[1][1]) == content


def test_groups_of_every_form():
    def message(*parts):
        out = b""
        for number, value in parts:
            if isinstance(value, bytes):
                out += bytes([number << 3 | 2, len(value)]) + value
            else:
                out += bytes([number << 3, value])
        return memoryview(out)

    # 8 devices as 2 x 4, transposed, 4 groups: neighbours in a group are 4 apart.
    iota = message((1, 4), (2, 2), (3, bytes([2, 4])), (4, bytes([1, 0])))
    assert hlo._iota_groups(iota) == ((0, 4), (1, 5), (2, 6), (3, 7))
    axes = bytes(message((2, 2))), bytes(message((2, 4)))
    mesh = bytes(message((1, axes[0]), (1, axes[1])))
    assert hlo._mesh_groups(message((1, mesh), (2, bytes(message((1, 1)))))) == ((0, 1, 2, 3), (4, 5, 6, 7))
    # Half of the second axis: (before 1, size 2) of 4, whose strides are 2 devices.
    part = bytes(message((1, 1), (2, bytes(message((1, 1), (2, 2))))))
    assert hlo._mesh_groups(message((1, mesh), (2, part))) == ((0, 2), (1, 3), (4, 6), (5, 7))
    # The same, of devices that are numbered along the first axis first.
    turned = bytes(message((3, bytes(message((1, bytes([4, 2])), (2, bytes([1, 0])))))))
    assert hlo._mesh_groups(message((1, mesh + turned), (2, bytes(message((1, 1)))))) == ((0, 2, 4, 6), (1, 3, 5, 7))
