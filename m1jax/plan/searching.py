"""Settings of a run on given chips, ranked: mesh x batch per chip x remat x accumulation, cheapest first.

What does not fit is dropped by the analytic memory model; the rest is ordered by cost with every unit at its published
peak and nothing overlapped, the traffic counted by formula (`traffic`). The compiler confirms the first few.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m1jax.config import MeshConfig, RunConfig, StageConfig, tuning
from m1jax.errors import UserError
from m1jax.hardware import GIB, TPUS
from m1jax.plan import flops, memory
from m1jax.plan.topologies import Topology, smallest

REMATS = ("none", "dots", "block")
SLACK = 0.9
"""Share of HBM that a setting may take by formula: the formula's own error is the rest."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting of a run's stages: bytes a device in that which needs most, cost of all (money, or chip-hours).

    Rows (a device and micro-batch) and seconds (a step) are those of the first stage.
    """

    topology: Topology
    mesh: dict[str, int]
    accumulation: int
    remat: str
    rows: float
    memory: float
    seconds: float
    cost: float

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with this setting."""
        train = dataclasses.replace(config.train, accumulation=self.accumulation, remat=self.remat)
        hardware = dataclasses.replace(config.hardware, topology=self.topology.name, slices=self.topology.slices)
        return dataclasses.replace(config, mesh=MeshConfig(**self.mesh), train=train, hardware=hardware)

    def overrides(self) -> list[str]:
        """The setting as `--set` arguments."""
        mesh = [f"mesh.{axis}={size}" for axis, size in self.mesh.items()]
        hardware = [f"hardware.topology={self.topology.name}", f"hardware.slices={self.topology.slices}"]
        return [*mesh, f"train.accumulation={self.accumulation}", f"train.remat={self.remat}", *hardware]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return tree | {"topology": self.topology.name, "slices": self.topology.slices, "set": self.overrides()}


def comparable(topology: Topology) -> list[Topology]:
    """For every chip the smallest slice that has at least the same peak FLOP/s, or its largest."""
    found = []
    for chip in TPUS.values():
        wanted = math.ceil(math.prod(topology.shape) * topology.chip.flops / chip.flops)
        largest = Topology(chip, tuple(map(int, chip.topologies[-1].split("x"))))
        found.append(dataclasses.replace(smallest(chip, wanted) or largest, slices=topology.slices))
    return found


def rank(
    config: RunConfig, stages: Sequence[StageConfig], topologies: Sequence[Topology], prices: Mapping[str, float]
) -> list[Candidate]:
    """Settings that fit these stages by formula, cheapest first; the rest of the config stays as it is.

    With prices (of a chip-hour) the cost is money and chips without one are left out. Raises UserError with the
    numbers of the nearest miss where nothing fits.
    """
    if prices and not any(topology.chip.name in prices for topology in topologies):
        raise UserError(
            f"no price is given for {', '.join(t.chip.name for t in topologies)}: add CHIP=NUMBER to --price."
        )
    fitting: list[Candidate] = []
    nearest: Candidate | None = None
    for topology in topologies:
        if prices and topology.chip.name not in prices:
            continue
        for candidate in candidates(config, stages, topology, prices.get(topology.chip.name, 1.0)):
            room = topology.hbm_per_device * SLACK
            if candidate.memory <= room:
                fitting.append(candidate)
            elif nearest is None or candidate.memory / room < nearest.memory / (
                nearest.topology.hbm_per_device * SLACK
            ):
                nearest = candidate
    if not fitting:
        names = ", ".join(topology.name for topology in topologies)
        miss = (
            "no mesh divides its heads, rows and tokens"
            if nearest is None
            else f"the smallest setting needs {nearest.memory / GIB:.1f} of "
            f"{nearest.topology.hbm_per_device / GIB:.1f} "
            f"GiB a device ({SLACK:.0%} of which may be planned)"
        )
        raise UserError(
            f"{config.name} ({config.model.num_parameters:,} parameters; "
            f"{'; '.join(f'{s.name} {s.global_batch} rows of {s.row_length}' for s in stages)}) fits no setting on "
            f"{names}: {miss}; take more chips or more HBM a chip."
        )
    return sorted(fitting, key=lambda c: (c.cost, c.memory))


def candidates(
    config: RunConfig, stages: Sequence[StageConfig], topology: Topology, price: float
) -> Iterator[Candidate]:
    """Every setting whose mesh multiplies out to the devices and divides heads, and rows and tokens of `stages`."""
    model = config.model
    per_slice = topology.num_devices // topology.slices
    for tensor, context in itertools.product(_powers(per_slice), repeat=2):
        if per_slice % (tensor * context) or not _divides(config, stages, tensor, context):
            continue
        rest = per_slice // (tensor * context)
        for fsdp in _powers(rest):
            mesh = {
                "replica": topology.slices, "data": rest // fsdp, "fsdp": fsdp, "tensor": tensor, "context": context
            }  # fmt: skip
            if rest % fsdp or model.hidden % fsdp:
                continue
            batches = math.gcd(*(batch for stage in stages for batch, _ in stage.batches))
            rows = rest * topology.slices
            for accumulation, remat in itertools.product(_powers(batches // rows), REMATS):
                if batches % (rows * accumulation) == 0:
                    yield _candidate(config, stages, topology, mesh, accumulation, remat, price)


def _candidate(
    config: RunConfig,
    stages: Sequence[StageConfig],
    topology: Topology,
    mesh: dict[str, int],
    accumulation: int,
    remat: str,
    price: float,
) -> Candidate:
    train = dataclasses.replace(config.train, accumulation=accumulation, remat=remat)
    setting = dataclasses.replace(config, train=train)
    seconds = [_seconds(setting, stage, topology, mesh) for stage in stages]
    hours = sum(stage.rows / stage.global_batch * step / 3600 for stage, step in zip(stages, seconds, strict=True))
    return Candidate(
        topology=topology,
        mesh=mesh,
        accumulation=accumulation,
        remat=remat,
        rows=stages[0].global_batch / (mesh["replica"] * mesh["data"] * mesh["fsdp"] * accumulation),
        memory=max(memory.estimate(setting, stage, mesh).total for stage in stages),
        seconds=seconds[0],
        cost=hours * topology.chips * price,
    )


def _seconds(config: RunConfig, stage: StageConfig, topology: Topology, mesh: Mapping[str, int]) -> float:
    """A step of a stage with every unit at its peak and nothing overlapped."""
    near, far = traffic(config, stage, mesh)
    per_token = flops.per_token(config.model, stage.row_length, config.train).hardware
    tokens = stage.global_batch * stage.row_length
    chip = topology.chip
    return tokens * per_token / (chip.flops * topology.chips) + (near / chip.link + far / chip.dcn) * chip.devices


def traffic(config: RunConfig, stage: StageConfig, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Bytes that a device receives in a step over ICI and over DCN, by formula.

    fsdp: every matrix gathered forward and backward (again where blocks are computed again) in the compute dtype and
    its gradient (of what is trained) scattered in float32, in each micro-batch; data: gradients reduced among all once
    a micro-batch; tensor: two all-reduces of the hidden states a layer, forward and backward; context: K and V
    gathered, their gradients scattered; replica: gradients over DCN.
    """
    model, train = config.model, config.train
    width = memory.BF16 if model.compute_dtype == "bfloat16" else memory.FP32
    parts = train.accumulation
    passes = 2 + flops.RECOMPUTED[train.remat]
    matrices = model.num_parameters / mesh["tensor"]
    moved = tuning.trained_scalars(model, train.lora, train.trained) / model.num_parameters
    fsdp = _share(mesh["fsdp"]) * matrices * parts * (passes * width + moved * memory.FP32)
    sharded = moved * matrices / mesh["fsdp"] * memory.FP32
    data = 2 * _share(mesh["data"]) * sharded * parts
    rows = mesh["replica"] * mesh["data"] * mesh["fsdp"]
    tokens = stage.global_batch * stage.row_length / rows / mesh["context"]
    layers = model.num_layers
    tensor = 2 * _share(mesh["tensor"]) * tokens * model.hidden * width * layers * 2 * passes
    kv = sum(2 * kv_heads * head_dim for _, kv_heads, head_dim in map(model.heads, model.layer_kinds)) * width
    context = (mesh["context"] - 1) * tokens * kv * (passes + 1) / 2 * 2
    replica = 2 * _share(mesh["replica"]) * sharded * parts
    return fsdp + data + tensor + context, replica


def _share(size: int) -> float:
    return (size - 1) / size


def _divides(config: RunConfig, stages: Sequence[StageConfig], tensor: int, context: int) -> bool:
    model = config.model
    heads = (model.num_heads, model.window_num_heads)
    whole = all(h % tensor == 0 for h in heads) and model.ffn % tensor == 0 and model.vocab_size % tensor == 0
    lengths = [stage.row_length for stage in stages]
    return whole and all(length % (2 * context) == 0 and length // context >= 128 for length in lengths)


def _powers(limit: int) -> list[int]:
    """1, 2, 4 … up to `limit`."""
    return [1 << i for i in range(max(limit, 1).bit_length())]
