"""The programs of a run, lowered and compiled by the real TPU compiler, and what is read from them.

What a compilation says is kept by a fingerprint of the program, the chips, the compiler and its flags, so that the
same question is answered at once the next time.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from m1jax import objectives
from m1jax.config import RunConfig, StageConfig
from m1jax.errors import UserError
from m1jax.model.layout import PERIODS
from m1jax.parallel import mesh as meshes
from m1jax.plan import buffers, hlo
from m1jax.plan.buffers import Buffer
from m1jax.plan.collectives import Collective, summary, whole_gathers
from m1jax.plan.topologies import Topology
from m1jax.train import program
from m1jax.train.hooks.average import state_hooks

_NUMBER = r"([\d.]+[KMGT]?)"
_OVER = re.compile(
    rf"Used {_NUMBER} of {_NUMBER} hbm|HLO temporaries \({_NUMBER}\) exceeds available HBM \({_NUMBER}\)"
)
"""How the compiler says that a program is too large: all of it, or its temporaries alone."""


class TooLargeError(Exception):
    """The program needs more HBM than a device has: bytes needed, bytes there (both as the compiler counts)."""

    def __init__(self, used: float, limit: float):
        super().__init__(f"{used / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB")
        self.used, self.limit = used, limit


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the compiler says of a program on one device; bytes of HBM, collectives and kernels of one call."""

    arguments: int
    outputs: int
    aliased: int
    """Bytes of the outputs that take the place of donated arguments."""
    temporaries: int
    code: int
    host: int
    """Bytes in the host's memory."""
    collectives: tuple[Collective, ...]
    kernels: dict[str, int]
    """Custom calls by name: how often each runs."""
    largest: tuple[Buffer, ...]
    """The five largest values among the arguments and what lives when the temporaries are at their peak."""
    whole_gathers: tuple[str, ...]
    """All-gathers of a whole stacked parameter."""
    seconds: float
    """Time of the compilation."""

    @property
    def hbm(self) -> int:
        """Bytes that the program needs on one device at most: arguments, new outputs, temporaries and code."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


Compiling = Callable[[str, Callable[[], Facts]], Facts]
"""Runs a compilation (the second argument) while it tells of it (the first)."""


def mesh_for(config: RunConfig, topology: Topology, stages: Sequence[StageConfig] | None = None) -> jax.sharding.Mesh:
    """The run's mesh over a topology's devices.

    Raises UserError where it does not multiply out, or does not divide the batches of `stages` (default: all).
    """
    mesh = meshes.make(config.mesh, topology.devices())
    meshes.check_batches(config, mesh, stages)
    return mesh


def train_program(config: RunConfig, mesh: jax.sharding.Mesh) -> program.Program:
    """The optimiser step that `m1 train` runs with this config and mesh: its objective, and its hooks' state."""
    return program.build(config, objectives.make(config, mesh), mesh, state_hooks(config.train))


@contextlib.contextmanager
def lowering(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Inside it programs are lowered for `mesh`, with the same text from any folder.

    Kernels carry the places in source files inside, unless told not to; and they ask the abstract mesh for which chip
    they are, which a program of one device does not set by itself.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_setting("jax_traceback_in_locations_limit", 0))
        if mesh.size == 1:
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh.abstract_mesh))
        yield


@contextlib.contextmanager
def _setting(name: str, value: Any) -> Iterator[None]:
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def fingerprint(lowered: jax.stages.Lowered, topology: Topology) -> str:
    """16 hexadecimal digits of a lowered program, its chips, the compiler's version and flags."""
    parts = (lowered.as_text(), topology.name, str(topology.slices), *compiler())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def compiler() -> tuple[str, ...]:
    """Versions of what lowers and compiles, and the flags given to it."""
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu")]
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'm1jax[plan]' brings the TPU compiler.") from error
    return (*versions, f"LIBTPU_INIT_ARGS={os.environ.get('LIBTPU_INIT_ARGS', '')}")


def cached(mark: str) -> Facts | None:
    """What an earlier compilation with this fingerprint said."""
    try:
        return from_json(json.loads((_cache() / f"{mark}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or of another version: compile


def facts(lowered: jax.stages.Lowered, mark: str, mesh: jax.sharding.Mesh, topology: Topology, params: Any) -> Facts:
    """Compiles and reads a lowered program and keeps what it says under `mark`; raises TooLargeError."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="m1-plan-") as folder:
        try:
            # What comes out of JAX's cache of programs was not compiled, and dumps nothing.
            with _setting("jax_enable_compilation_cache", False):
                compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_proto": True})
        except jax.errors.JaxRuntimeError as error:
            over = _OVER.search(str(error))
            if over is None:
                raise
            used, limit = (part for part in over.groups() if part)
            raise TooLargeError(_bytes(used), _bytes(limit)) from error
        seconds = time.perf_counter() - started
        dumps = list(Path(folder).glob("*.after_optimizations.hlo.pb"))
        dump = hlo.grouped(memoryview(max(dumps, key=lambda path: path.stat().st_size).read_bytes()))
    found = read(compiled.memory_analysis(), dump, mesh, topology, params, seconds)
    _cache().mkdir(parents=True, exist_ok=True)
    partial = _cache() / f".{mark}.{os.getpid()}"
    partial.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    partial.replace(_cache() / f"{mark}.json")
    return found


def known_or(
    compile_it: Compiling,
    what: str,
    lowered: jax.stages.Lowered,
    mesh: jax.sharding.Mesh,
    topology: Topology,
    params: Any,
) -> tuple[str, Facts]:
    """The fingerprint of a lowered program and what the compiler says of it, now or earlier; raises TooLargeError."""
    mark = fingerprint(lowered, topology)
    return mark, cached(mark) or compile_it(
        f"{what}, {topology.name}", lambda: facts(lowered, mark, mesh, topology, params)
    )


def read(
    stats: Any, dump: dict[int, list[Any]], mesh: jax.sharding.Mesh, topology: Topology, params: Any, seconds: float
) -> Facts:
    """What the compiler says: its memory statistics, and its dump (HloProto: module 1, buffer assignment 3).

    `params` is the tree of parameters; collectives that gather all layers of a stacked one at once are looked for.
    """
    module = hlo.read(dump[1][0])
    stacked = [leaf.shape for leaf in jax.tree.leaves(params.get(PERIODS, {}))]
    return Facts(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        host=stats.host_temp_size_in_bytes + stats.host_argument_size_in_bytes,
        collectives=summary(module, dict(mesh.shape), topology.slices),
        kernels=_kernels(module),
        largest=buffers.largest(module, dump[3][0]),
        whole_gathers=tuple(whole_gathers(module, [s for s in stacked if len(s) > 2])),
        seconds=seconds,
    )


def from_json(tree: dict[str, Any]) -> Facts:
    """The Facts that `dataclasses.asdict` made a tree of."""
    tree = dict(tree)
    tree["collectives"] = tuple(Collective(**entry) for entry in tree["collectives"])
    tree["largest"] = tuple(Buffer(**entry) for entry in tree["largest"])
    tree["whole_gathers"] = tuple(tree["whole_gathers"])
    return Facts(**tree)


def _kernels(module: hlo.Module) -> dict[str, int]:
    """Pallas kernels by name, and how often a call of the program runs each."""
    counts: Counter[str] = Counter()
    for instruction, times, _ in module.executed():
        if instruction.target == "tpu_custom_call":
            counts[re.sub(r"[.\d]+$", "", instruction.name)] += times
    return dict(sorted(counts.items()))


def _bytes(text: str) -> float:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(text.rstrip("KMGT")) * units.get(text[-1], 1)


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "m1jax" / "plan"


def stage_named(config: RunConfig, name: str) -> StageConfig:
    """The stage of this name; raises UserError naming those there are."""
    for stage in config.stages:
        if stage.name == name:
            return stage
    raise UserError(f"stage {name!r} is not in the config: it has {', '.join(s.name for s in config.stages)}.")
