"""Loss and gradients on eight devices, along every mesh axis and their combinations, are those of one device."""

import functools
import itertools

import jax
import numpy as np
import pytest

from m1jax import model, objectives
from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from tests.parallel import toy

CONFIG = toy.config()
SINGLE = [{axis: 8} for axis in meshes.AXES]
PAIRS = [{first: 2, second: 4} for first, second in itertools.combinations(meshes.AXES, 2)]
THREE = [dict.fromkeys(axes, 2) for axes in (meshes.AXES[:3], meshes.AXES[2:], ("replica", "tensor", "context"))]


@functools.cache
def initial():
    return model.create(CONFIG.model, 0)[1]


def loss_and_gradients(sizes, devices):
    mesh = meshes.make(MeshConfig(**sizes), jax.devices()[:devices])
    objective = objectives.make(CONFIG, mesh)
    shardings = rules.parameter_shardings(mesh, objective.shapes, objective.axes)
    params = jax.device_put(initial(), shardings)
    batch = jax.device_put(toy.batch(), rules.batch_sharding(mesh))

    def loss_sum(params):
        terms = objective.terms(params, batch, toy.SCALARS)
        return terms.loss.sum, terms.loss.denominator

    run = jax.jit(jax.value_and_grad(loss_sum, has_aux=True), out_shardings=(None, shardings))
    (loss, count), grads = run(params)
    return float(loss), float(count), jax.device_get(grads), params


@pytest.fixture(scope="module")
def expected():
    return loss_and_gradients({}, 1)


@pytest.mark.parametrize(
    "sizes", SINGLE + PAIRS + THREE, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items())
)
def test_every_axis_and_combination_gives_the_loss_and_gradients_of_one_device(sizes, expected):
    loss, count, grads, params = loss_and_gradients({"data": 1, **sizes}, 8)
    assert count == expected[1]
    np.testing.assert_allclose(loss, expected[0], rtol=2e-6)
    for (path, found), wanted in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected[2]), strict=True):
        # A gradient sums over tokens that devices hold in another order: compare to its largest entry.
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=jax.tree_util.keystr(path))
    if sizes.get("tensor", 1) > 2:
        # Two KV heads on global layers: held whole by every device, by rule; four on window layers are split.
        wide, narrow = (params["periods"][slot]["attention"]["k_proj"].sharding.spec[2] for slot in "10")
        assert narrow is None
        assert wide == ("tensor" if sizes["tensor"] == 4 else None)


@pytest.mark.parametrize(
    ("overrides", "sizes", "reason"),
    [
        (["model.ffn=44"], {"tensor": 8}, r"has 44 along 'ffn', which mesh.tensor = 8 does not divide"),
        (["model.num_heads=4"], {"tensor": 8}, r"has 4 along 'heads', which mesh.tensor = 8 does not divide"),
        (
            ["model.num_heads=2", "model.hidden=36", "model.window_num_heads=2", "model.window_num_kv_heads=2"],
            {"fsdp": 8},
            r"has 36 along 'embed'",
        ),
        ([], {"data": 4}, "do not make 8 devices"),
        (["stages.0.global_batch=12"], {"data": 8}, r"stages.0.global_batch = 12 rows .* over 8 devices"),
        (["train.accumulation=2"], {"fsdp": 8}, r"over 8 devices .* in train.accumulation = 2 parts: .* of 16"),
        (["stages.0.row_length=60", "data.row_lengths=(60,64,128)"], {"context": 8}, r"row_length = 60 .*context = 8"),
    ],
)
def test_what_the_shapes_do_not_allow_is_refused_with_the_reason(overrides, sizes, reason):
    run = toy.config(*overrides)
    with pytest.raises(UserError, match=reason):
        mesh = meshes.make(MeshConfig(**{"data": 1, **sizes}), jax.devices())
        meshes.check_batches(run, mesh)
        toy.program(run, mesh)


class FakeDevice:
    """A device of another process: all that a mesh of processes asks of one."""

    platform = "cpu"

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("sizes", "local", "share"),
    [
        ({"fsdp": 8}, 2, (0, 4)),  # every process its own rows
        ({"fsdp": 2, "tensor": 4}, 2, (0, 2)),  # two processes hold the same rows
        ({"data": 1, "context": 8}, 1, (0, 1)),  # all hold all rows, each a piece of the sequence
        ({"data": 4, "tensor": 2}, 4, (0, 2)),
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same_rows(sizes, local, share):
    devices = [FakeDevice(i // local) for i in range(8)]
    shape = MeshConfig(**sizes).shape(8)
    assert meshes.row_share_of(np.asarray(devices).reshape(shape), 0) == share


def test_rows_that_overlap_in_part_are_refused():
    devices = np.asarray([FakeDevice(i // 3) for i in range(6)]).reshape(MeshConfig(tensor=2).shape(6))
    with pytest.raises(UserError, match=r"overlap in part.*divisor of mesh.tensor x mesh.context = 2"):
        meshes.row_share_of(devices, 0)
