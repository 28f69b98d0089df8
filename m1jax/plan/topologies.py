"""Slices of TPUs by name, and their devices for compiling on a machine that has none."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m1jax.errors import UserError
from m1jax.hardware import TPU, TPUS

_FORM = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)")


@dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip: `v5p:4x8x8`, times a number of slices joined by the data-centre network."""

    chip: TPU
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
        return self.chip.hbm_per_device

    @property
    def flops_per_device(self) -> float:
        """Dense bf16 FLOP/s of one device."""
        return self.chip.flops_per_device

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
        import jax
        from jax.experimental import topologies

        # XLA_FLAGS is for CPU and GPU, and read by now; libtpu, which has LIBTPU_INIT_ARGS, reads it too at its first
        # compilation, and ends the process where it does not know a flag.
        jax.devices("cpu")
        os.environ.pop("XLA_FLAGS", None)
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
    chip = TPUS.get(found[1]) if found else None
    if not found or chip is None:
        known = "; ".join(f"{chip.name}: {', '.join(chip.topologies)}" for chip in TPUS.values())
        raise UserError(f"topology {text!r} is unknown: write CHIP:SHAPE, one of {known}.")
    shape = tuple(map(int, found[2].split("x")))
    if found[2] not in chip.topologies:
        raise UserError(f"topology {text} is unknown: {chip.name} slices are {', '.join(chip.topologies)}.")
    if slices < 1:
        raise UserError(f"topology {text} needs at least 1 slice, got {slices}.")
    return Topology(chip, shape, slices)


def smallest(chip: TPU, chips: int) -> Topology | None:
    """The smallest listed slice of at least `chips` chips; None where there is none."""
    shapes = [tuple(map(int, name.split("x"))) for name in chip.topologies]
    fitting = [shape for shape in shapes if math.prod(shape) >= chips]
    return Topology(chip, min(fitting, key=math.prod)) if fitting else None
