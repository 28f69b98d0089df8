"""Accelerators by their published figures: the one table of chips.

Sources: docs.cloud.google.com/tpu/docs (a page for each TPU version) and NVIDIA's data sheets; each chip names its own.
launch/driver/settings.py imports nothing of m1jax and repeats names, dimensions and cores; a test compares the two.
"""

from dataclasses import dataclass

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip: its names, dense bfloat16 FLOP/s, memory and links."""

    name: str
    """On the command line and in configs."""
    kinds: tuple[str, ...]
    """`device_kind` of its devices in JAX. An older libtpu calls a v5p "TPU v5p", libtpu 0.0.51 "TPU v5"."""
    flops: float
    """Dense bfloat16 FLOP/s: NVIDIA publishes twice as many, for sparse matrices."""
    hbm: float
    """Bytes."""
    hbm_bandwidth: float
    """Bytes/s."""
    link: float
    """Bytes/s that the chip sends over ICI or NVLink, and as many that it receives: half of what is published as the
    sum of both directions."""
    devices: int = 1
    """Devices that JAX counts a chip as."""
    source: str

    @property
    def flops_per_device(self) -> float:
        """Dense bfloat16 FLOP/s of one device as JAX counts devices."""
        return self.flops / self.devices

    @property
    def hbm_per_device(self) -> float:
        """Bytes of HBM that belong to one device."""
        return self.hbm / self.devices


@dataclass(frozen=True, kw_only=True)
class TPU(Chip):
    """A TPU that m1jax has kernels for and compiles for without having one."""

    dcn: float
    """Bytes/s that the chip sends over the data-centre network, and as many that it receives."""
    cores: int
    """Cores on which one device runs a kernel."""
    vmem: int
    """Bytes of vector memory a core, as JAX's Pallas has them (jax/_src/pallas/mosaic/tpu_info.py)."""
    dimensions: int
    """Of the torus: a slice's shape has as many numbers."""
    topologies: tuple[str, ...]
    """Slices that Google's documentation lists, smallest first (the large 3D ones in part)."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8",
    "4x4x12", "4x8x12", "8x8x12", "8x8x16", "8x16x16", "16x16x16", "16x16x24",
)  # fmt: skip
_GOOGLE = "docs.cloud.google.com/tpu/docs/"
_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet"
_BLACKWELL = "NVIDIA Blackwell Architecture Technical Brief, system specifications"

_TPUS = (
    TPU(
        name="v5e", kinds=("TPU v5 lite", "TPU v5e"), flops=197e12, hbm=16 * GIB, hbm_bandwidth=819e9, link=200e9,
        # 6.4 Tb/s a pod of 256 chips.
        dcn=25e9 / 8, cores=1, vmem=128 * MIB, dimensions=2, topologies=_FLAT, source=_GOOGLE + "v5e",
    ),
    TPU(
        name="v5p", kinds=("TPU v5", "TPU v5p"), flops=459e12, hbm=95 * GIB, hbm_bandwidth=2765e9, link=600e9,
        dcn=50e9 / 8, cores=2, vmem=64 * MIB, dimensions=3, topologies=_SOLID, source=_GOOGLE + "v5p-training",
    ),
    TPU(
        name="v6e", kinds=("TPU v6 lite", "TPU v6e"), flops=918e12, hbm=32 * GIB, hbm_bandwidth=1638e9, link=400e9,
        # The table that compares versions on the page of tpu7x.
        dcn=100e9 / 8, cores=1, vmem=128 * MIB, dimensions=2, topologies=_FLAT, source=_GOOGLE + "tpu7x",
    ),
    TPU(
        name="tpu7x", kinds=("TPU7x",), flops=2307e12, hbm=192 * GIB, hbm_bandwidth=7380e9, link=600e9, devices=2,
        dcn=100e9 / 8, cores=1, vmem=64 * MIB, dimensions=3, topologies=_SOLID, source=_GOOGLE + "tpu7x",
    ),
)  # fmt: skip
_OTHERS = (
    Chip(
        name="v4", kinds=("TPU v4",), flops=275e12, hbm=32 * GIB, hbm_bandwidth=1200e9, link=300e9,
        source=_GOOGLE + "v4",
    ),
    Chip(
        name="a100-40gb", kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), flops=312e12, hbm=40 * GIB,
        hbm_bandwidth=1555e9, link=300e9, source=_A100,
    ),
    Chip(
        name="a100-80gb", kinds=("NVIDIA A100-SXM4-80GB",), flops=312e12, hbm=80 * GIB, hbm_bandwidth=2039e9,
        link=300e9, source=_A100,
    ),
    Chip(
        name="a100-pcie-80gb", kinds=("NVIDIA A100 80GB PCIe",), flops=312e12, hbm=80 * GIB, hbm_bandwidth=1935e9,
        link=300e9, source=_A100,
    ),
    Chip(
        name="h100", kinds=("NVIDIA H100 80GB HBM3",), flops=989e12, hbm=80 * GIB, hbm_bandwidth=3350e9, link=450e9,
        source=_H100,
    ),
    Chip(
        name="h100-pcie", kinds=("NVIDIA H100 PCIe",), flops=756e12, hbm=80 * GIB, hbm_bandwidth=2000e9, link=300e9,
        source=_H100,
    ),
    Chip(
        name="h100-nvl", kinds=("NVIDIA H100 NVL",), flops=835e12, hbm=94 * GIB, hbm_bandwidth=3900e9, link=300e9,
        source=_H100,
    ),
    Chip(
        name="h200", kinds=("NVIDIA H200",), flops=989e12, hbm=141 * GIB, hbm_bandwidth=4800e9, link=450e9,
        source=_H200,
    ),
    Chip(
        name="h200-nvl", kinds=("NVIDIA H200 NVL",), flops=835e12, hbm=141 * GIB, hbm_bandwidth=4800e9, link=450e9,
        source=_H200,
    ),
    Chip(
        name="gh200", kinds=("NVIDIA GH200 480GB",), flops=989e12, hbm=96 * GIB, hbm_bandwidth=4000e9, link=450e9,
        source="NVIDIA GH200 Grace Hopper Superchip data sheet",
    ),
    Chip(
        name="b200", kinds=("NVIDIA B200",), flops=2250e12, hbm=180 * GIB, hbm_bandwidth=8000e9, link=900e9,
        source=_BLACKWELL + " (HGX B200)",
    ),
    Chip(
        name="gb200", kinds=("NVIDIA GB200",), flops=2500e12, hbm=186 * GIB, hbm_bandwidth=8000e9, link=900e9,
        source=_BLACKWELL + " (GB200 NVL72, a rack's figures over 72)",
    ),
)  # fmt: skip

TPUS = {chip.name: chip for chip in _TPUS}
CHIPS: dict[str, Chip] = {**TPUS, **{chip.name: chip for chip in _OTHERS}}
"""Every chip by name: TPUs that m1jax compiles for, then chips whose peak is known only."""
_BY_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}


def by_kind(device_kind: str) -> Chip | None:
    """The chip that JAX names so; None for a CPU, a part of a GPU (MIG), and chips that are not in the table.

    Names are compared whole: "NVIDIA H100 PCIe" has 0.76 of the FLOP/s of "NVIDIA H100 80GB HBM3".
    """
    return _BY_KIND.get(device_kind)
