"""TPU chips by their published figures, and topologies of them that nobody need hold.

Figures are those of Google's Cloud TPU documentation (docs.cloud.google.com/tpu/docs/v5e, v5p-training, v6e, tpu7x).
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m1jax.errors import UserError

GIB = 2**30
_FORM = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)")


@dataclass(frozen=True)
class Chip:
    """One chip: dense bf16 FLOP/s, HBM bytes and bytes/s, ICI bytes/s out of it, DCN bytes/s out of it.

    ICI is published as the sum of both directions of all links: `ici` is half of it, what a chip can send (or receive).
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    dcn: float
    dimensions: int
    devices: int
    """Devices that JAX counts a chip as."""
    topologies: tuple[str, ...]
    """Slices that Google's documentation lists, smallest first (the large 3D ones in part)."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8",
    "4x4x12", "4x8x12", "8x8x12", "8x8x16", "8x16x16", "16x16x16", "16x16x24",
)  # fmt: skip
CHIPS = {
    "v5e": Chip("v5e", 197e12, 16 * GIB, 819e9, 200e9, 25e9 / 8, 2, 1, _FLAT),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 2765e9, 600e9, 50e9 / 8, 3, 1, _SOLID),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 1638e9, 400e9, 100e9 / 8, 2, 1, _FLAT),
    "tpu7x": Chip("tpu7x", 2307e12, 192 * GIB, 7380e9, 600e9, 100e9 / 8, 3, 2, _SOLID),
}


@dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip: `v5p:4x8x8`, times a number of slices joined by the data-centre network."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As a config and the command write it, without the number of slices."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """Devices that JAX sees."""
        return self.chips * self.chip.devices

    @property
    def hbm_per_device(self) -> float:
        """Bytes of HBM that belong to one device."""
        return self.chip.hbm / self.chip.devices

    @property
    def flops_per_device(self) -> float:
        """Dense bf16 FLOP/s of one device."""
        return self.chip.flops / self.chip.devices

    def devices(self) -> Sequence[Any]:
        """The devices, for compiling only; raises UserError where libtpu is missing."""
        # Else libtpu asks a metadata server, dies beside a second process, and fills the disk with logs.
        for name, value in (
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("ALLOW_MULTIPLE_LIBTPU_LOAD", "true"),
            ("TPU_LOG_DIR", "disabled"),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
            ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),  # of the host, which has none; the topology is given
        ):
            os.environ.setdefault(name, value)
        from jax.experimental import topologies

        slices = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            return topologies.get_topology_desc(self.name, "tpu", **slices).devices
        except (RuntimeError, ImportError) as error:
            if "libtpu" in str(error) or "No module" in str(error):
                raise UserError(
                    f"the TPU compiler is not installed ({error}): pip install 'm1jax[plan]' brings libtpu."
                ) from error
            raise UserError(f"topology {self.name} is refused by the TPU compiler: {error}.") from error


def parse(text: str, slices: int = 1) -> Topology:
    """The topology that `text` names; raises UserError that lists the known ones."""
    found = _FORM.fullmatch(text)
    chip = CHIPS.get(found[1]) if found else None
    if not found or chip is None:
        known = "; ".join(f"{chip.name}: {', '.join(chip.topologies)}" for chip in CHIPS.values())
        raise UserError(f"topology {text!r} is unknown: write CHIP:SHAPE, one of {known}.")
    shape = tuple(map(int, found[2].split("x")))
    if found[2] not in chip.topologies:
        raise UserError(f"topology {text} is unknown: {chip.name} slices are {', '.join(chip.topologies)}.")
    if slices < 1:
        raise UserError(f"topology {text} needs at least 1 slice, got {slices}.")
    return Topology(chip, shape, slices)


def smallest(chip: Chip, chips: int) -> Topology | None:
    """The smallest listed slice of at least `chips` chips; None where there is none."""
    shapes = [tuple(map(int, name.split("x"))) for name in chip.topologies]
    fitting = [shape for shape in shapes if math.prod(shape) >= chips]
    return Topology(chip, min(fitting, key=math.prod)) if fitting else None
