"""The compiled programs of generation, and the parameters as they want them.

Programs are pure functions of parameters and state, compiled once per batch, padded length and capacity; limits, keys
and sampling settings are data.

Legend: B batch, S sequence, V vocabulary, R room for new tokens.
"""

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from m1jax import model as models
from m1jax.config import ModelConfig
from m1jax.generate.sampling import Controls, likeliest_token, sample
from m1jax.generate.steering import Alternatives, Steering, likeliest, steered
from m1jax.generate.structure import Structure
from m1jax.model.cache import LAYER_AXES, grown, take
from m1jax.model.head import normalize_rows
from m1jax.parallel import rules

Array = jax.Array

ROOM = 64
"""New tokens that one call of `decode` can hold."""
_SCORED = 1024
"""Tokens whose logits exist at once in `score_ends`."""


class State(NamedTuple):
    """What generation goes on from: the cache, and the logits (B, V) float32 after each row's last token."""

    cache: models.Cache
    logits: Array


class Draws(NamedTuple):
    """What sampling needs beside logits: `seen` (B, V) bool marks the tokens that each row holds."""

    seen: Array
    keys: Array
    controls: Controls
    steering: Steering | None = None
    """What requests ask for beyond `controls`; None compiles nothing of it."""


@dataclass(frozen=True)
class Prepared:
    """A model laid out for many calls; on a mesh, parameters and cache are split as `m1jax.parallel.rules` says."""

    config: ModelConfig
    structure: Structure
    parameters: dict[str, Any]
    rope_base: Array
    mesh: Mesh | None
    _warm: set[Any] = field(default_factory=set)

    def run(self, program: Any, *args: Any) -> tuple[Any, float]:
        """What a program of the model makes of its other arguments, and the seconds of compiling it just now."""
        return self._timed(program, (self.structure, self.mesh, self.parameters, self.rope_base), args)

    def like(self, other: "Prepared") -> "Prepared":
        """The same, with what another of the same model has compiled already."""
        return dataclasses.replace(self, _warm=other._warm)

    def arrange(self, program: Any, *args: Any) -> tuple[Any, float]:
        """The same for a program that needs no parameters."""
        return self._timed(program, (self.config, self.mesh), args)

    def placed(self, tree: Any) -> Any:
        """The arrays where the parameters are, for good: those that may be anywhere would be another program's."""
        if self.mesh is not None:
            return tree
        return jax.device_put(tree, _only_device(self.parameters))

    def _timed(self, program: Any, ours: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, float]:
        sizes = tuple(leaf if isinstance(leaf, int) else leaf.shape for leaf in jax.tree.leaves(args))
        kind = program, jax.tree.structure(args), sizes
        seconds = 0.0
        if kind not in self._warm:
            started = time.perf_counter()
            program.lower(*ours, *args).compile()
            seconds = time.perf_counter() - started
            self._warm.add(kind)
        return program(*ours, *args), seconds


def prepare(config: ModelConfig, rope_base: float, parameters: dict[str, Any], mesh: Mesh | None) -> Prepared:
    """Every layer by itself, matrices in the compute dtype where that is narrower, the head normalised once.

    None of it changes a logit: a decoding step would do the same to each matrix again. On several devices attention is
    the reference, which XLA divides; it cannot divide a kernel. Raises UserError where a dimension does not divide over
    the mesh.
    """
    return placed(config, rope_base, narrowed(config, parameters), mesh)


def narrowed(config: ModelConfig, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters as `prepare` changes them: a pure function, which may be part of a compiled program."""
    tree = models.unstacked(config, parameters)
    if config.normalize_head or config.tie_embeddings:  # one of its own, as `unrolled` has it
        table = tree["embed" if config.tie_embeddings else "head"]["weight"]
        factor = jax.jit(normalize_rows)(table) if config.normalize_head else table
        tree["head"] = {"weight": factor.astype(config.compute_dtype)}
    narrow = jnp.dtype(config.compute_dtype)

    def cast(axes: tuple[str | None, ...], leaf: Array) -> Array:
        # Norms and convolutions stay: the dtype of their weight is that of their arithmetic.
        matrix = len(axes) > 1 and "conv" not in axes
        return leaf.astype(narrow) if matrix and narrow.itemsize < leaf.dtype.itemsize else leaf

    return jax.tree.map(cast, unrolled(config).axes, tree, is_leaf=lambda axes: isinstance(axes, tuple))


def _only_device(tree: Any) -> jax.Device:
    """Where the arrays rest; numpy's go where new ones do."""
    ours = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    (device,) = (ours[0] if ours else jnp.zeros(())).devices()
    return device


@functools.lru_cache(maxsize=8)
def unrolled(config: ModelConfig) -> models.Abstract:
    """The model that `narrowed` parameters are of, on one device."""
    config = dataclasses.replace(config, normalize_head=False, tie_embeddings=False)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # whatever is being lowered around it
        return models.abstract(config, cut=models.Layout(config.layer_kinds, (), 0, ()))


def placed(config: ModelConfig, rope_base: float, tree: dict[str, Any], mesh: Mesh | None) -> Prepared:
    """What `narrowed` made, on its devices; from those of another mesh it is moved without passing through the host."""
    if mesh is not None and mesh.size > 1:
        config = dataclasses.replace(config, attention="reference")
    abstract = unrolled(config)
    base = jnp.float32(rope_base)
    if mesh is None:
        tree = jax.device_put(tree, _only_device(tree))  # those of a mesh of one device would be another program's
    else:
        tree = jax.device_put(tree, rules.parameter_shardings(mesh, abstract.shapes, abstract.axes))
        base = jax.device_put(base, rules.replicated(mesh))
    config = dataclasses.replace(config, normalize_head=False, tie_embeddings=False)
    return Prepared(config, Structure(abstract.graphdef), tree, base, mesh)


def laid_out(mesh: Mesh | None, state: State) -> State:
    """The state in its place on the mesh: KV heads split where they divide, everything else on every device."""
    if mesh is None:
        return state

    def split(name: str, leaf: Array) -> Array:
        sharding = rules.parameter_sharding(mesh, leaf.shape, LAYER_AXES[name], f"cache {name}")
        return jax.lax.with_sharding_constraint(leaf, sharding)

    layers = tuple(
        type(layer)(**{name: split(name, leaf) for name, leaf in layer._asdict().items()})
        for layer in state.cache.layers
    )
    whole = rules.replicated(mesh)
    lengths, logits = jax.lax.with_sharding_constraint((state.cache.lengths, state.logits), whole)
    return State(models.Cache(layers, lengths), logits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(
    structure: Structure,
    mesh: Mesh | None,
    parameters: Any,
    rope_base: Array,
    tokens: Array,
    segment_ids: Array | None,
    positions: Array | None,
) -> Array:
    """Logits (B, S, V) float32 without a cache."""
    return structure.decoder(parameters)(tokens, segment_ids, positions, rope_base=rope_base)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def start(config: ModelConfig, mesh: Mesh | None, batch: int, capacity: int) -> State:
    """No tokens yet; the logits are zeros until there are."""
    empty = models.empty_cache(config, batch, capacity)
    return laid_out(mesh, State(empty, jnp.zeros((batch, config.vocab_size), jnp.float32)))


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def widen(config: ModelConfig, mesh: Mesh | None, state: State, capacity: int) -> State:
    """The state with room for `capacity` tokens a row."""
    return laid_out(mesh, state._replace(cache=grown(config, state.cache, capacity)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def choose(config: ModelConfig, mesh: Mesh | None, state: State, rows: Array) -> State:
    """The state of the named rows (B',), a copy."""
    return laid_out(mesh, State(take(state.cache, rows), state.logits[rows]))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def prefill(
    structure: Structure, mesh: Mesh | None, parameters: Any, rope_base: Array, state: State, tokens: Array, real: Array
) -> State:
    """The state with new tokens (B, S), padded on the left; a row without a real one keeps its logits."""
    decoder = structure.decoder(parameters)
    hidden, cache = decoder.extend(tokens, state.cache, rope_base=rope_base, real=real)
    logits = jnp.where(real[:, -1:], decoder.logits(hidden[:, -1:])[:, 0], state.logits)
    return laid_out(mesh, State(cache, logits))


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(
    structure: Structure,
    mesh: Mesh | None,
    parameters: Any,
    rope_base: Array,
    state: State,
    tokens: Array,
    real: Array,
    targets: Array,
) -> Array:
    """Log p (B, S) float32, nats, of what follows each of new tokens (B, S), padded on the left; no state is kept."""
    decoder = structure.decoder(parameters)
    hidden, _ = decoder.extend(tokens, state.cache, rope_base=rope_base, real=real)
    return decoder.log_likelihood(hidden, targets, chunk=tokens.size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score_ends(
    structure: Structure,
    mesh: Mesh | None,
    parameters: Any,
    rope_base: Array,
    cache: models.Cache,
    rows: Array,
    tokens: Array,
    targets: Array,
    real: Array,
) -> Array:
    """Log p(target) (R, A) float32, nats, of tokens (R, A) that follow the rows (R,) of the cache, which stays.

    `real` (R, A) bool marks what is not padding, which is on the right.
    """
    del mesh
    decoder = structure.decoder(parameters)
    hidden, _ = decoder.extend(tokens, take(cache, rows), rope_base=rope_base, real=real)
    return decoder.log_likelihood(hidden, targets, chunk=_SCORED)


class Decoded(NamedTuple):
    """What `decode` returns: the state after the new tokens, and the tokens."""

    state: State
    tokens: Array
    """(B, R) int32; of each row the first `counts` are new."""
    log_p: Array
    """(B, R) float32, nats: of each token under the model at the row's temperature, or at 1 where that is 0."""
    counts: Array
    """(B,) int32."""
    done: Array
    """(B,) bool: the rows that were given as done, and those that one of the end tokens ended."""
    draws: Draws | None
    alternatives: Alternatives | None
    """(B, R, N) each: the likeliest tokens beside each new one; None without steering."""


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode(
    structure: Structure,
    mesh: Mesh | None,
    parameters: Any,
    rope_base: Array,
    state: State,
    done: Array,
    step: Array,
    limit: Array,
    most: Array,
    leaving: Array,
    eos_ids: Array,
    draws: Draws | None,
) -> Decoded:
    """Up to `most` (at most ROOM) new tokens of each row that is not done.

    `step` (B,) int32 counts the tokens that each row has generated before and numbers its draws; a row stops at `limit`
    (B,) of them. A token among `eos_ids` (E,), or a row's own (B, E), ends its row: it counts, but is not put into the
    cache. The loop returns early when `leaving` rows have stopped, so that others can take their places. `draws` None
    is greedy. With steering, log p is at temperature 1.
    """
    decoder = structure.decoder(parameters)
    B = done.shape[0]
    live_before = ~done & (step < limit)
    steering = None if draws is None else draws.steering

    def live(counts: Array, done: Array) -> Array:
        return ~done & (step + counts < limit)

    def going(carry: Any) -> Array:
        at, _, _, _, counts, done, _, _ = carry
        alive = live(counts, done)
        return (at < most) & jnp.any(alive) & (jnp.sum(live_before & ~alive) < leaving)

    def one(carry: Any) -> Any:
        at, state, new, log_p, counts, done, held, beside = carry
        alive = live(counts, done)
        logits = state.logits
        if draws is None:
            token = likeliest_token(logits)
        else:
            seen, used = held
            if steering is not None:
                wanted = steered(logits, steering._replace(used=used))
            token = sample(logits if steering is None else wanted, seen, draws.keys, step + counts, draws.controls)
            rows = jnp.arange(B)
            held = seen.at[rows, token].max(alive), None if used is None else used.at[rows, token].add(alive)
            if steering is None:
                logits /= jnp.where(draws.controls.temperature > 0, draws.controls.temperature, 1.0)[:, None]
        total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1) - total
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, at))
        log_p = jax.lax.dynamic_update_slice(log_p, chosen, (0, at))
        if steering is not None:
            asked = jnp.any(alive & (steering.alternatives > 0))
            beside = jax.lax.cond(
                asked,
                lambda: jax.tree.map(
                    lambda kept, now: jax.lax.dynamic_update_slice(kept, now[:, None], (0, at, 0)),
                    beside, likeliest(logits, total, beside.ids.shape[2]),
                ),
                lambda: beside,
            )  # fmt: skip
        counts += alive
        ended = alive & jnp.any(token[:, None] == eos_ids, axis=1)
        goes_on = alive & ~ended
        hidden, cache = decoder.extend(token[:, None], state.cache, rope_base=rope_base, real=goes_on[:, None])
        following = jnp.where(goes_on[:, None], decoder.logits(hidden)[:, 0], state.logits)
        return at + 1, laid_out(mesh, State(cache, following)), new, log_p, counts, done | ended, held, beside

    held: Any = None if draws is None else (draws.seen, None if steering is None else steering.used)
    beside = None if steering is None else Alternatives.empty(B, ROOM, state.logits.shape[1])
    new, log_p, counts = jnp.zeros((B, ROOM), jnp.int32), jnp.zeros((B, ROOM), jnp.float32), jnp.zeros(B, jnp.int32)
    begun = jnp.int32(0), state, new, log_p, counts, done, held, beside
    _, state, new, log_p, counts, done, held, beside = jax.lax.while_loop(going, one, begun)
    if draws is not None:
        seen, used = held
        draws = draws._replace(seen=seen, steering=None if steering is None else steering._replace(used=used))
    return Decoded(state, new, log_p, counts, done, draws, beside)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def place(config: ModelConfig, mesh: Mesh | None, state: State, source: State, rows: Array, slots: Array) -> State:
    """The state with rows (N,) of another in its slots (N,); a slot number beyond the batch places nothing.

    The source may have room for fewer tokens, or for more than its rows hold: a token keeps its place in a layer's
    cache (m1jax.model.cache.grown).
    """
    del config

    def put(leaf: Array, other: Array) -> Array:
        other = other[(slice(None), *(slice(0, size) for size in leaf.shape[1:]))]
        index = (slots, *(slice(0, size) for size in other.shape[1:]))
        return leaf.at[index].set(other[rows], mode="drop")

    return laid_out(mesh, jax.tree.map(put, state, source))
