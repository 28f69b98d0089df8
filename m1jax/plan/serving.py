"""What `m1 serve` can hold on TPUs: conversations of a given length at once, and the tokens a second that they get.

All devices of the topology divide one model (`m1 serve --tensor`). Beside the weights there are the slots' caches with
what rows draw with, one row whose prompt is being read, and what each program needs while it runs. Kept states of
earlier prompts take what is left, and give way.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from m1jax.config import MeshConfig, ModelConfig, RunConfig
from m1jax.errors import UserError
from m1jax.generate import programs
from m1jax.generate.requests import END_IDS, empty_draws
from m1jax.generate.room import Limits
from m1jax.hardware import GIB
from m1jax.parallel import mesh as meshes
from m1jax.plan import compiling, decoding, flops, memory, roofline
from m1jax.plan.compiling import Compiling
from m1jax.plan.topologies import Topology

CONTEXTS = (8192, 32_768)
_TRIES = 5
_CLOSE = 0.03
"""Share of the room that may stay unused."""
_MOST_ROWS = 1024
"""Rows at most: a small model holds tens of thousands, which no server would put into one batch."""
_FREE = 0.02
"""Share of HBM that is left free."""


@dataclasses.dataclass(frozen=True)
class Serving:
    """Conversations of one length on a topology; bytes of one device, seconds at the published peaks."""

    context: int
    rows: int
    """Conversations at once, each with room for `context` tokens."""
    weights: float
    cache: float
    """Of all rows."""
    reading: float
    """Of the row whose prompt is being read."""
    program: float
    """What the larger of the two programs needs beside its arguments."""
    limit: float
    token: roofline.Times
    """One new token of every row."""
    piece: roofline.Times
    """One piece of a prompt, `Limits.chunk` tokens."""

    @property
    def used(self) -> float:
        """All of it."""
        return self.weights + self.cache + self.reading + self.program

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together, at the bound."""
        return self.rows / self.token.bound


def serving(config: RunConfig, context: int, topology: Topology, compile_it: Compiling) -> Serving:
    """The most conversations of `context` tokens that fit, by compiling what serves them.

    Raises UserError where not one does, where the model has fewer positions and where it does not divide.
    """
    model = config.model
    if context > model.max_positions:
        raise UserError(f"the model has {model.max_positions} positions: it cannot hold {context} tokens.")
    devices = topology.devices()
    mesh = meshes.make(MeshConfig(tensor=len(devices)), devices)
    found = _Compiled(config, mesh, topology, compile_it)
    limit = topology.hbm_per_device * (1 - _FREE)
    read, piece = found.reading(context)
    one = memory.device_bytes(decoding.abstract_state(model, mesh, 1, context))
    each = one + _drawn(model)
    room = limit - found.weights - one  # for rows, and for what a program needs with them
    rows = min(_MOST_ROWS, int((room - found.beside(read)) / each))
    best, under, over = None, (0, 0.0), None
    for _ in range(_TRIES):
        if rows <= under[0]:
            break
        try:
            facts, token = found.token(rows, context)
            program = max(found.beside(read), found.beside(facts))
            taken = rows * each + program
        except compiling.TooLargeError as error:
            taken = error.used
        if taken <= room:
            best = Serving(context, rows, found.weights, rows * each, one, program, limit, token, piece)
            under = rows, taken
            if over is None or taken > (1 - _CLOSE) * room:
                break
        else:
            over = rows, taken
        # What a program needs grows with its rows too: a line through the two tries that the answer lies between.
        share = (room - under[1]) / (over[1] - under[1])
        rows = min(over[0] - 1, under[0] + int(share * (over[0] - under[0])))
    if best is not None:
        return best
    raise UserError(
        f"{topology.name} has no room for one conversation of {context} tokens: the weights take "
        f"{found.weights / GIB:.2f} of {limit / GIB:.2f} GiB a device; take more or larger chips."
    )


class _Compiled:
    def __init__(self, config: RunConfig, mesh: Mesh, topology: Topology, compile_it: Compiling):
        self._config, self._mesh, self._topology, self._compile = config, mesh, topology, compile_it
        self.weights = memory.device_bytes(decoding.abstract_parameters(config.model, mesh)[1])

    def token(self, rows: int, context: int) -> tuple[compiling.Facts, roofline.Times]:
        """The program of a new token of each row, and its times."""
        model = self._config.model
        draws = jax.eval_shape(lambda: empty_draws(rows, model.vocab_size))
        given = decoding.arguments(model, self._mesh, rows, context, draws, (rows, END_IDS))
        found = self._facts(f"a token of {rows} rows of {context}", programs.decode, given)
        work = rows * flops.decode_per_token(model, context - 1) / self._mesh.size
        return found, roofline.step_times(work, found.arguments, found.collectives, self._topology)

    def reading(self, context: int) -> tuple[compiling.Facts, roofline.Times]:
        """The program of a piece of one prompt, and its times."""
        model, tokens = self._config.model, Limits().chunk
        given = decoding.reading(model, self._mesh, 1, context, tokens)
        found = self._facts(f"{tokens} tokens of a prompt of {context}", programs.prefill, given)
        work = tokens * flops.decode_per_token(model, context - 1) / self._mesh.size
        return found, roofline.step_times(work, found.arguments, found.collectives, self._topology)

    def beside(self, facts: compiling.Facts) -> float:
        """Bytes of a program that are not its arguments."""
        return facts.hbm - facts.arguments

    def _facts(self, what: str, how: Any, given: tuple[Any, ...]) -> compiling.Facts:
        with compiling.lowering(self._mesh):
            lowered = how.lower(*given)
        what = f"{self._config.name}, {what}"
        return compiling.known_or(self._compile, what, lowered, self._mesh, self._topology, {})[1]


def _drawn(model: ModelConfig) -> float:
    """Bytes of what a row draws with, on every device."""
    return float(
        sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: empty_draws(1, model.vocab_size)))
        )
    )


def to_json(found: Serving, topology: Topology) -> dict[str, Any]:
    """The answer as plain values."""
    tree = {"topology": topology.name, **dataclasses.asdict(found)}
    return {**tree, "used": found.used, "tokens_per_second": found.tokens_per_second}
