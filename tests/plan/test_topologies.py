import pytest

from m1jax import hardware
from m1jax.errors import UserError
from m1jax.plan import topologies


@pytest.mark.parametrize("text", ["v5p:3x3x3", "v5p", "v9:2x2", "v5e:4x4x4", "v5e:x4", "", "V5E:2x2"])
def test_an_unknown_topology_lists_the_known(text):
    with pytest.raises(UserError, match="2x2") as error:
        topologies.parse(text)
    assert "\n" not in str(error.value)


def test_a_topology_counts_chips_devices_and_slices():
    topology = topologies.parse("tpu7x:2x2x1", slices=2)
    assert (topology.chips, topology.num_devices, topology.name) == (8, 16, "tpu7x:2x2x1")
    assert topology.hbm_per_device == 96 * hardware.GIB and topology.flops_per_device == 2307e12 / 2


def test_no_slice_is_refused():
    with pytest.raises(UserError, match="at least 1 slice"):
        topologies.parse("v5e:2x2", slices=0)


@pytest.mark.parametrize(
    ("topology", "slices", "devices"), [("v5p:2x2x1", 1, 4), ("v6e:2x2", 2, 8), ("tpu7x:2x2x1", 1, 8)]
)
def test_the_compiler_knows_the_devices(topology, slices, devices):
    pytest.importorskip("libtpu")
    found = topologies.parse(topology, slices).devices()
    assert len(found) == devices and found[0].platform == "tpu"


def test_the_smallest_slice_holds_the_chips():
    assert topologies.smallest(hardware.TPUS["v5p"], 60).shape == (4, 4, 4)
    assert topologies.smallest(hardware.TPUS["v5e"], 1000) is None
