"""What `m1 plan` answers: memory by part, FLOPs, collectives, times at their peaks, cost of each stage."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from m1jax.config import RunConfig, StageConfig
from m1jax.generate.programs import decode
from m1jax.model.flops import train_flops
from m1jax.parallel import mesh as meshes
from m1jax.plan import compiling, decoding, flops, memory, roofline
from m1jax.plan.collectives import Collective
from m1jax.plan.compiling import Compiling
from m1jax.plan.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Answer:
    """One program on one topology. Bytes and FLOPs are of one device and one call (a step), times in seconds."""

    program: str
    settings: str
    """What else of the config the program depends on, in words."""
    topology: str
    chips: int
    mesh: dict[str, int]
    fits: bool
    hbm: float
    hbm_limit: float
    parts: dict[str, float]
    largest: tuple[compiling.Buffer, ...]
    kernels: dict[str, int]
    collectives: tuple[Collective, ...]
    tokens: int
    """Tokens of a step (or of a decode step: one a row) over all chips."""
    model_flops_per_token: float
    hardware_flops_per_token: float
    times: roofline.Times
    host: float
    compile_seconds: float
    fingerprint: str
    stages: tuple[roofline.StageCost, ...] = ()

    @property
    def tokens_per_second_per_chip(self) -> float:
        """At the bound."""
        return self.tokens / self.times.bound / self.chips

    def mfu(self, peak_of_all: float) -> float:
        """Model FLOPs at the bound over the peak of all chips."""
        return self.tokens * self.model_flops_per_token / self.times.bound / peak_of_all


def train_step(config: RunConfig, stage: StageConfig, topology: Topology, compile_it: Compiling) -> Answer:
    """The optimiser step of a stage; raises UserError where mesh or batch do not divide, TooLargeError."""
    mesh = compiling.mesh_for(config, topology, [stage])
    built = compiling.train_program(config, mesh)
    with compiling.lowering(mesh):
        lowered = built.lower(stage)
    what = f"{config.name}, stage {stage.name}"
    mark, found = compiling.known_or(compile_it, what, lowered, mesh, topology, built.params)
    shape = dict(mesh.shape)
    tokens = stage.global_batch * stage.row_length
    per_token = flops.per_token(config.model, stage.row_length, config.train)
    # What the objective computes beside the model forward and backward, such as a reference.
    positions = np.arange(stage.row_length)
    beside = (built.objective.flops(positions) - train_flops(config.model, positions, config.train)) / len(positions)
    parts_of_state = {
        "parameters": built.state.params,
        "frozen parameters": built.state.frozen,
        "optimiser": built.state.opt_state,
        **{f"{name} of hooks": tree for name, tree in built.state.hooks.items()},
    }
    state = {name: leaves for name, tree in parts_of_state.items() if (leaves := jax.tree.leaves(tree))}
    parts = memory.by_part(state, found, config, stage, shape)
    times = roofline.step_times(
        tokens * (per_token.hardware + beside) / mesh.size,
        _train_traffic(config, parts, shape),
        found.collectives,
        topology,
    )
    same = [s for s in config.stages if (s.row_length, s.global_batch) == (stage.row_length, stage.global_batch)]
    return Answer(
        program=f"train {stage.name}",
        settings=f"accumulation {config.train.accumulation}, remat {config.train.remat}, attention "
        f"{config.model.attention}",
        topology=topology.name,
        chips=topology.chips,
        mesh=shape,
        fits=found.hbm <= topology.hbm_per_device,
        hbm=found.hbm,
        hbm_limit=topology.hbm_per_device,
        parts=parts,
        largest=found.largest,
        kernels=found.kernels,
        collectives=found.collectives,
        tokens=tokens,
        model_flops_per_token=per_token.model + beside,
        hardware_flops_per_token=per_token.hardware + beside,
        times=times,
        host=found.host,
        compile_seconds=found.seconds,
        fingerprint=mark,
        stages=tuple(roofline.stage_cost(s, times.bound, topology) for s in same),
    )


def decode_step(config: RunConfig, rows: int, topology: Topology, compile_it: Compiling) -> Answer:
    """One token for each of `rows` rows that may grow to the model's longest context; all chips serve one batch."""
    mesh = meshes.make(config.mesh, topology.devices())
    capacity = config.model.max_positions
    arguments = decoding.arguments(config.model, mesh, rows, capacity)
    with compiling.lowering(mesh):
        lowered = decode.lower(*arguments)
    mark, found = compiling.known_or(compile_it, f"{config.name}, decode", lowered, mesh, topology, {})
    per_token = flops.decode_per_token(config.model, capacity - 1)
    # The loop of the program may run for ROOM tokens; its trip count is data, so that it is counted once.
    cache = decoding.cache_bytes(config.model, rows, capacity) / _cache_split(config, mesh)
    times = roofline.step_times(
        rows * per_token / mesh.size, found.arguments - found.aliased + cache, found.collectives, topology
    )
    weights = found.arguments - found.aliased
    return Answer(
        program=f"decode {rows} rows to {capacity}",
        settings="weights in bfloat16, attention reference"
        if config.model.compute_dtype == "bfloat16"
        else "attention reference",
        topology=topology.name,
        chips=topology.chips,
        mesh=dict(mesh.shape),
        fits=found.hbm <= topology.hbm_per_device,
        hbm=found.hbm,
        hbm_limit=topology.hbm_per_device,
        parts={
            "weights": weights,
            "cache and logits": found.aliased,
            "temporaries": found.temporaries + found.outputs - found.aliased,
            "code": found.code,
        },
        largest=found.largest,
        kernels=found.kernels,
        collectives=found.collectives,
        tokens=rows,
        model_flops_per_token=per_token,
        hardware_flops_per_token=per_token,
        times=times,
        host=found.host,
        compile_seconds=found.seconds,
        fingerprint=mark,
    )


def distinct(stages: Iterable[StageConfig]) -> list[StageConfig]:
    """The stages that compile to different programs: first of each row length and batch."""
    found: dict[tuple[int, int], StageConfig] = {}
    for stage in stages:
        found.setdefault((stage.row_length, stage.global_batch), stage)
    return list(found.values())


def _train_traffic(config: RunConfig, parts: dict[str, float], mesh: dict[str, int]) -> float:
    """Bytes that a step cannot avoid to move through HBM.

    State read and written once, gradients written and read once, every matrix read forward and backward in each
    micro-batch, in the compute dtype, as much of it as the device multiplies with.
    """
    width = 2 if config.model.compute_dtype == "bfloat16" else 4
    weights = config.model.num_parameters / mesh["tensor"] * width
    state = parts["parameters"] + parts["optimiser"]
    return 2 * state + 2 * parts["parameters"] + 2 * weights * config.train.accumulation


def _cache_split(config: RunConfig, mesh: jax.sharding.Mesh) -> int:
    """Devices that share a row's cache where KV heads divide over `tensor`."""
    tensor = mesh.shape["tensor"]
    divides = all(config.model.heads(kind)[1] % tensor == 0 for kind in set(config.model.layer_kinds))
    return tensor if divides else 1


def to_json(answer: Answer, topology: Topology) -> dict[str, Any]:
    """The answer as plain values, with what follows from it."""
    tree = dataclasses.asdict(answer)
    tree["margin"] = answer.hbm_limit - answer.hbm
    tree["times"] |= {
        "bound": answer.times.bound, "unoverlapped": answer.times.unoverlapped, "limit": answer.times.limit
    }  # fmt: skip
    tree["at_bound"] = {
        "tokens_per_second_per_chip": answer.tokens_per_second_per_chip,
        "mfu": answer.mfu(topology.chip.flops * topology.chips),
    }
    return tree
