import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1jax import hardware
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.plan import roofline, searching, topologies
from m1jax.plan.collectives import Collective

CONFIG = config_file.load("m1_14b")
STAGE = CONFIG.stages[0]
V5P = topologies.parse("v5p:4x4x4")


def test_every_setting_multiplies_out_and_divides():
    found = list(searching.candidates(CONFIG, [STAGE], topologies.parse("v5p:2x2x4", slices=2), 1.0))
    assert len(found) > 100
    for setting in found:
        assert math.prod(setting.mesh.values()) == 32 and setting.mesh["replica"] == 2
        assert setting.rows >= 1 and setting.rows == int(setting.rows)
        assert CONFIG.model.num_heads % setting.mesh["tensor"] == 0


def test_more_devices_along_fsdp_need_less_memory_and_remat_less_again():
    found = list(searching.candidates(CONFIG, [STAGE], V5P, 1.0))

    def memory(**wanted):
        (one,) = [
            c for c in found
            if c.mesh | {"accumulation": c.accumulation, "remat": c.remat} == {**c.mesh, **wanted}
            and all(c.mesh[axis] == wanted.get(axis, 1) for axis in c.mesh)
        ]  # fmt: skip
        return one.memory

    same = {"accumulation": 8, "remat": "block"}
    assert memory(fsdp=64, **same) < memory(fsdp=32, data=2, **same)
    assert memory(fsdp=64, **same) < memory(fsdp=64, accumulation=8, remat="dots")
    assert memory(fsdp=64, **same) < memory(fsdp=64, accumulation=4, remat="block")


def test_a_setting_is_the_run_with_its_overrides():
    best = searching.rank(CONFIG, [STAGE], [V5P], {})[0]
    assert config_file.load("m1_14b", best.overrides()) == best.applied(CONFIG)


def test_settings_divide_every_stage_of_the_run_and_fit_the_one_that_needs_most():
    """512 rows of 32,768 in the last stage bound how the 2,048 rows of the first may be spread."""
    every = searching.rank(CONFIG, CONFIG.stages, [V5P], {})
    alone = {tuple(c.overrides()): c for c in searching.rank(CONFIG, [STAGE], [V5P], {})}
    for setting in every:
        rows = math.prod(setting.mesh[axis] for axis in ("replica", "data", "fsdp")) * setting.accumulation
        assert all(stage.global_batch % rows == 0 for stage in CONFIG.stages)
        same = alone[tuple(setting.overrides())]
        assert setting.memory >= same.memory and setting.cost > same.cost
    assert every


def test_a_search_among_chips_without_a_price_is_refused():
    with pytest.raises(UserError, match="no price is given for v5p"):
        searching.rank(CONFIG, [STAGE], [V5P], {"v5e": 1.0})


def test_prices_decide_between_chips():
    slices = searching.comparable(V5P)
    assert [t.chip.name for t in slices] == ["v5e", "v5p", "v6e", "tpu7x"]
    assert all(t.chips * t.chip.flops >= 64 * 459e12 for t in slices)
    for cheap in ("v5p", "v6e"):
        prices = {"v5p": 10.0, "v6e": 10.0} | {cheap: 0.01}
        assert searching.rank(CONFIG, [STAGE], slices, prices)[0].topology.chip.name == cheap


def test_no_time_lies_below_the_roofline():
    for setting in searching.rank(CONFIG, [STAGE], [V5P], {})[::50]:
        flops = 6 * 13.8e9 * STAGE.global_batch * STAGE.row_length
        assert setting.seconds > flops / (64 * 459e12)


@given(
    flops=st.floats(0, 1e18),
    hbm=st.floats(0, 1e14),
    moved=st.lists(st.tuples(st.floats(0, 1e14), st.booleans()), max_size=4),
    chip=st.sampled_from(sorted(hardware.TPUS)),
)
def test_no_part_alone_takes_longer_than_the_bound_nor_the_bound_than_all_parts(flops, hbm, moved, chip):
    topology = topologies.Topology(hardware.TPUS[chip], (2, 2), slices=2)
    parts = [Collective("all-gather", "fsdp", 1, size, far) for size, far in moved]
    times = roofline.step_times(flops, hbm, parts, topology)
    one = topology.chip
    alone = (
        flops / (one.flops / one.devices),
        hbm / (one.hbm_bandwidth / one.devices),
        sum(size for size, far in moved if not far) / (one.link / one.devices),
        sum(size for size, far in moved if far) / (one.dcn / one.devices),
    )
    assert times.bound >= max(alone) * (1 - 1e-12)
    assert times.bound <= times.unoverlapped <= sum(alone) * (1 + 1e-12)


def test_the_bound_is_the_longest_part_and_slices_use_the_slow_network():
    far = Collective("all-reduce", "replica", 1, 6.25e9, True)
    near = Collective("all-gather", "fsdp", 3, 600e9, False)
    times = roofline.step_times(459e12 / 2, 2765e9 / 4, [near, far], V5P)
    assert (times.compute, times.hbm, times.ici, times.dcn) == pytest.approx((0.5, 0.25, 1.0, 1.0))
    assert times.bound == pytest.approx(1.0) and times.unoverlapped == pytest.approx(2.75)
