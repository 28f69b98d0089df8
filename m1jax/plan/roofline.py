"""Times that no run can beat: FLOPs, HBM, ICI and DCN, each at its published peak.

`bound` is the longest of the four: everything overlaps everything. `unoverlapped` is their sum: nothing overlaps, yet
each unit still runs at its peak. Neither is a prediction; a real step takes longer than the bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from m1jax.config import StageConfig
from m1jax.plan.collectives import Collective
from m1jax.plan.topologies import Topology

DAY = 86_400.0


@dataclass(frozen=True)
class Times:
    """Seconds of one step on one device, a part at its peak."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def bound(self) -> float:
        """No step is faster."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def unoverlapped(self) -> float:
        """A step whose parts run one after the other, each at its peak."""
        return self.compute + self.hbm + self.ici + self.dcn

    @property
    def limit(self) -> str:
        """The part that the bound comes from."""
        parts = {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class StageCost:
    """What a stage takes at best (`bound`)."""

    stage: str
    steps: int
    days: float
    chip_hours: float


def step_times(flops: float, hbm_bytes: float, collectives: Iterable[Collective], topology: Topology) -> Times:
    """Times of one device: its hardware FLOPs, the bytes it must move through HBM, and its collectives of a step.

    A chip's bandwidth is shared by its devices; a slice's DCN likewise.
    """
    chip, share = topology.chip, topology.chip.devices
    near = sum(c.bytes for c in collectives if not c.crosses_slices)
    far = sum(c.bytes for c in collectives if c.crosses_slices)
    return Times(
        compute=flops / topology.flops_per_device,
        hbm=hbm_bytes * share / chip.hbm_bandwidth,
        ici=near * share / chip.link,
        dcn=far * share / chip.dcn,
    )


def stage_cost(stage: StageConfig, seconds: float, topology: Topology) -> StageCost:
    """A stage of which a full step takes `seconds`; ramped steps are counted by their share of rows."""
    steps = stage.rows / stage.global_batch
    total = steps * seconds
    return StageCost(stage.name, stage.steps, total / DAY, total / 3600 * topology.chips)
