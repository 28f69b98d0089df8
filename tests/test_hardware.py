"""The table of chips against what JAX, libtpu and the launcher know."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax._src.pallas.mosaic import tpu_info

from m1jax import hardware
from m1jax.parallel import measure
from m1jax.plan import topologies

ROOT = pathlib.Path(__file__).parents[1]


class Unattached:
    """A device as far as a peak depends on it."""

    platform = "tpu"

    def __init__(self, device_kind):
        self.device_kind = device_kind


def test_a_name_is_of_one_chip():
    kinds = [kind for chip in hardware.CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds)) and all(chip.source for chip in hardware.CHIPS.values())
    assert all(hardware.by_kind(kind) is chip for chip in hardware.CHIPS.values() for kind in chip.kinds)


@pytest.mark.parametrize("name", hardware.TPUS)
def test_libtpu_names_a_device_as_the_table_does(name):
    pytest.importorskip("libtpu")
    chip = hardware.TPUS[name]
    topology = topologies.Topology(chip, tuple(map(int, chip.topologies[1].split("x"))))
    devices = topology.devices()
    assert hardware.by_kind(devices[0].device_kind) is chip
    assert len(devices) == topology.num_devices and devices[0].num_cores == chip.cores


@pytest.mark.parametrize("kind", [kind for chip in hardware.CHIPS.values() for kind in chip.kinds if "TPU" in kind])
def test_pallas_has_the_same_figures(kind):
    """Its table, of a core, is independent of ours; the bandwidth that it has for a v5p is not the published one."""
    chip = hardware.by_kind(kind)
    version = tpu_info.chip_version_from_device_kind(kind)
    assert str(version) == chip.name.removeprefix("tpu")
    of_chip = version.num_physical_tensor_cores_per_chip
    cores = of_chip // chip.devices
    core = tpu_info.get_tpu_info_for_chip(version, cores)
    assert core.bf16_ops_per_second * cores == pytest.approx(chip.flops_per_device, rel=0.005)
    assert core.hbm_capacity_bytes * cores == pytest.approx(chip.hbm_per_device, rel=0.02)
    bandwidth = core.mem_bw_bytes_per_second * of_chip
    assert bandwidth == pytest.approx(chip.hbm_bandwidth, rel=0.12 if chip.name == "v5p" else 0.03)
    if isinstance(chip, hardware.TPU):
        assert (core.vmem_capacity_bytes, core.num_cores) == (chip.vmem, chip.cores)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("TPU v99", None),
    ],
)
def test_the_peak_of_a_device_is_the_published_one_or_none(kind, peak):
    assert measure.peak_flops(Unattached(kind), "bfloat16") == peak
    assert measure.has_peak(Unattached(kind)) == (peak is not None)


def test_the_peak_of_a_cpu_is_measured():
    peak = measure.peak_flops(jax.devices("cpu")[0], "float32")
    assert 1e8 < peak < 1e14


def test_the_launcher_has_the_same_chips():
    program = (
        "import json; from driver.settings import GENERATIONS as known;"
        "print(json.dumps({name: [chip.cores, chip.dimensions] for name, chip in known.items()}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "launch")}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    ours = {name: [chip.cores * chip.devices, chip.dimensions] for name, chip in hardware.TPUS.items()}
    assert json.loads(found.stdout) == ours
    assert all(len(shape.split("x")) == chip.dimensions for chip in hardware.TPUS.values() for shape in chip.topologies)
