"""The Baichuan-M1 decoder: embedding, blocks scanned by period, final norm, normalised head.

Parameters form a nested dict of arrays with string keys:

    embed/weight                          (V, E)    vocab, embed
    prefix/<i>/…, suffix/<i>/…            blocks, unrolled
    periods/<slot>/…                      blocks with a leading axis "layers"
        input_norm/weight                 (E,)      embed
        attention/q_proj                  (E, H, D) embed, heads, head_dim
        attention/k_proj, v_proj          (E, K, D) embed, kv_heads, head_dim
        attention/o_proj                  (H, D, E) heads, head_dim, embed
        attention/conv_k, conv_v          (K, 2)    kv_heads, conv
        post_attention_norm/weight        (E,)      embed
        mlp/gate_proj, up_proj            (E, F)    embed, ffn
        mlp/down_proj                     (F, E)    ffn, embed
        attention/lora/<name>/a, b        factors of rank R beside the matrix <name>: a has its input axes and
        mlp/lora/<name>/a, b              "rank", b "rank" and its output axes (m1jax.model.adapters)
    norm/weight                           (E,)      embed
    head/weight                           (V, E)    vocab, embed; absent where the embedding is tied

The names after the shapes are logical axes: metadata that `m1jax.parallel.rules` maps to mesh axes. `Layout.path` maps
layer numbers to prefix, periods and suffix.

Legend: B batch, S sequence, H heads, K KV heads, D head_dim, E hidden, F FFN, V vocabulary, L layers, R rank.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from m1jax import kernels
from m1jax.config import LoraConfig, ModelConfig
from m1jax.model import head as heads
from m1jax.model import remat as remats
from m1jax.model import seeds
from m1jax.model.attention import Attention
from m1jax.model.cache import Cache
from m1jax.model.layers import MLP, Initializer, RMSNorm
from m1jax.model.layout import PREFIX, SECTIONS, LayerPath, Layout, layout

Array = jax.Array
Constrain = Callable[[Array, tuple[str | None, ...]], Array]

HIDDEN = ("batch", "sequence", None)
"""Logical axes of hidden states."""

UNROLLED = 4
"""A scan of up to this many periods is unrolled: it compiles as fast and trains a sixth faster on CPUs, because nothing
is stacked for the backward pass.
"""


def unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    """The activation as it is: one device, or wherever the compiler puts it."""
    return x


class Block(nnx.Module):
    """One layer: x += attention(norm(x)); x += mlp(norm(x)) (reference code)."""

    def __init__(self, config: ModelConfig, kind: str, init: Initializer, lora: LoraConfig | None = None):
        residual_std = config.init_std / (2 * config.num_layers) ** 0.5
        self.input_norm = RMSNorm("input_norm", config.hidden, config.norm_eps, init)
        self.attention = Attention(config, kind, residual_std, init, lora)
        self.post_attention_norm = RMSNorm("post_attention_norm", config.hidden, config.norm_eps, init)
        self.mlp = MLP(config.hidden, config.ffn, config.init_std, residual_std, init, lora)

    def __call__(
        self, x_BSE: Array, rows: kernels.Rows, rope_base: float | Array, attention: kernels.AttentionFunction
    ) -> Array:
        """(B, S, E) in x's dtype."""
        x_BSE = x_BSE + self.attention(self.input_norm(x_BSE), rows, rope_base, attention)
        return x_BSE + self.mlp(self.post_attention_norm(x_BSE))

    def extend(
        self, x_BSE: Array, cache: kernels.LayerCache, new: kernels.NewTokens, rope_base: float | Array
    ) -> tuple[Array, kernels.LayerCache]:
        """The block over new tokens on a cache, and the cache with them."""
        out, cache = self.attention.extend(self.input_norm(x_BSE), cache, new, rope_base)
        x_BSE = x_BSE + out
        return x_BSE + self.mlp(self.post_attention_norm(x_BSE)), cache


class Table(nnx.Module):
    """A (V, E) matrix: the embedding, or the head's weight."""

    def __init__(self, name: str, config: ModelConfig, init: Initializer):
        self.weight = init.normal(name, (config.vocab_size, config.hidden), ("vocab", "embed"), config.init_std)


class Decoder(nnx.Module):
    """A causal language model with Baichuan-M1's architecture (arXiv 2502.12671); it knows no mesh.

    Matrices start normal with `config.init_std`, those that write into the residual divided by sqrt(2L); norms start
    at 1. `attention` is called as `kernels.attention` is; `constrain(x, axes)` returns x and may say how an activation
    with these logical axes is split over devices; `cut` is the layout of the layers in the tree, by default
    `layout(config)`; `lora` says which matrices have low-rank factors beside them.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        attention: kernels.AttentionFunction = kernels.attention,
        constrain: Constrain = unconstrained,
        cut: Layout | None = None,
        lora: LoraConfig | None = None,
    ):
        def block(kind: str, init: Initializer, layers: Sequence[int]) -> Block:
            return Block(config, kind, init, lora if lora and any(map(lora.of_layer, layers)) else None)

        with nnx.use_eager_sharding(False):
            init = Initializer(rngs.params(), jnp.dtype(config.param_dtype))
            cut = cut or layout(config)
            self.config = config
            self.attention = attention
            self.constrain = constrain
            self.repeats = cut.repeats
            self.embed = Table("embed", config, init)
            self.prefix = nnx.Dict({str(i): block(kind, init.layer(i), [i]) for i, kind in enumerate(cut.prefix)})
            stacks = {slot: cut.layers_of_slot(slot) for slot in range(len(cut.period))}
            self.periods = nnx.Dict(
                {str(i): block(kind, init.layers(stacks[i]), stacks[i]) for i, kind in enumerate(cut.period)}
            )
            first = config.num_layers - len(cut.suffix)
            self.suffix = nnx.Dict(
                {str(i): block(kind, init.layer(first + i), [first + i]) for i, kind in enumerate(cut.suffix)}
            )
            self.norm = RMSNorm("norm", config.hidden, config.norm_eps, init)
            if not config.tie_embeddings:
                self.head = Table("head", config, init)

    def __call__(
        self,
        tokens: Array,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        *,
        rope_base: float | Array,
    ) -> Array:
        """Logits (B, S, V) float32; arguments: see `hidden`."""
        return self.logits(self.hidden(tokens, segment_ids, positions, rope_base=rope_base))

    def hidden(
        self,
        tokens: Array,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        *,
        rope_base: float | Array,
        remat: str = "none",
        unroll: int = UNROLLED,
    ) -> Array:
        """Hidden states after the final norm, (B, S, E) in the compute dtype.

        Args:
            tokens: (B, S) integers below vocab_size.
            segment_ids: (B, S) int32, a number for each document of a packed row, 0 for padding; None for one document
                a row. Neighbouring documents carry different numbers.
            positions: (B, S) int32, by default counted from the start of each document.
            rope_base: base of the rotary positions, a float or a traced scalar.
            remat: what the backward pass keeps, a name of `m1jax.model.remat`.
            unroll: most periods that are compiled one by one; more of them are a loop.
        """
        if positions is None:
            one = jnp.ones(tokens.shape, jnp.int32)
            positions = document_positions(one if segment_ids is None else segment_ids)
        embedded_BSE = self.constrain(self.embedded(tokens), HIDDEN)
        return self.run(
            embedded_BSE, kernels.Rows(positions=positions, segment_ids=segment_ids), rope_base, remat, unroll
        )

    def extend(
        self, tokens: Array, cache: Cache, *, rope_base: float | Array, real: Array | None = None
    ) -> tuple[Array, Cache]:
        """Hidden states (B, S, E) of new tokens that follow those in the cache, and the cache with them.

        `real` (B, S) bool marks the tokens that are not padding, None for all; padding may be on either side of a
        row's tokens. The model must be unrolled (`model.unrolled`): a scan would copy the whole cache at every token.
        """
        assert not self.periods, "generation needs an unrolled model"
        if real is None:
            real = jnp.ones(tokens.shape, bool)
        x_BSE, new = self.embedded(tokens), kernels.NewTokens(lengths=cache.lengths, real=real)
        layers = []
        for block, layer in zip(_in_order(self.prefix), cache.layers, strict=True):
            x_BSE, layer = block.extend(x_BSE, layer, new, rope_base)
            layers.append(layer)
        return self.norm(x_BSE), Cache(tuple(layers), cache.lengths + new.counts)

    def embedded(self, tokens: Array) -> Array:
        """Embeddings of tokens, (B, S, E) in the compute dtype."""
        return self.embed.weight[...][tokens].astype(self.config.compute_dtype)

    def logits(self, hidden_BSE: Array) -> Array:
        """Logits (B, S, V) float32 of hidden states after the final norm."""
        return heads.logits(hidden_BSE, self._output_weight, normalize=self.config.normalize_head)

    def cross_entropy(self, hidden_BSE: Array, targets_BS: Array, weights_BS: Array, *, chunk: int) -> heads.Loss:
        """Summed loss of targets (B, S); arguments: see `m1jax.model.head.cross_entropy`."""
        normalize = self.config.normalize_head
        return heads.cross_entropy(
            hidden_BSE, self._output_weight, targets_BS, weights_BS, chunk=chunk, normalize=normalize
        )

    def log_likelihood(self, hidden_BSE: Array, targets_BS: Array, *, chunk: int) -> Array:
        """Log p(target) (B, S) float32; arguments: see `m1jax.model.head.log_likelihood`."""
        normalize = self.config.normalize_head
        return heads.log_likelihood(hidden_BSE, self._output_weight, targets_BS, chunk=chunk, normalize=normalize)

    def describe(self, hidden_BSE: Array, targets_BS: Array, *, chunk: int, temperature: float) -> heads.Described:
        """Log p(target) and entropy; arguments: see `m1jax.model.head.describe`."""
        settings: Any = {"chunk": chunk, "temperature": temperature, "normalize": self.config.normalize_head}
        return heads.describe(hidden_BSE, self._output_weight, targets_BS, **settings)

    def compare(
        self, hidden_BSE: Array, reference: "Decoder", reference_BSE: Array, targets_BS: Array, *, chunk: int
    ) -> heads.Compared:
        """This model beside a reference and its hidden states; see `m1jax.model.head.compare`."""
        weights = self._output_weight, reference_BSE, reference._output_weight
        return heads.compare(hidden_BSE, *weights, targets_BS, chunk=chunk, normalize=self.config.normalize_head)

    @property
    def _output_weight(self) -> Array:
        return (self.embed if self.config.tie_embeddings else self.head).weight[...]

    def run(
        self,
        x_BSE: Array,
        rows: kernels.Rows,
        rope_base: float | Array,
        remat: str = "none",
        unroll: int = UNROLLED,
    ) -> Array:
        """All blocks and the final norm over embeddings (B, S, E)."""

        def apply(block: Block, x: Array, looped: bool = False) -> Array:
            graphdef, state = nnx.split(block)

            def pure(state: Any, x: Array, rows: kernels.Rows, rope_base: float | Array) -> Array:
                return self.constrain(nnx.merge(graphdef, state)(x, rows, rope_base, self.attention), HIDDEN)

            return remats.block(pure, remat, looped=looped)(state, x, rows, rope_base)

        for block in _in_order(self.prefix):
            x_BSE = apply(block, x_BSE)
        if self.periods:
            graphdef, stacked = nnx.split(self.periods)
            few = self.repeats <= unroll

            def period(x: Array, state: Any) -> tuple[Array, None]:
                for block in _in_order(nnx.merge(graphdef, state)):
                    x = apply(block, x, looped=not few)
                return x, None

            x_BSE, _ = jax.lax.scan(period, x_BSE, stacked, unroll=few)
        for block in _in_order(self.suffix):
            x_BSE = apply(block, x_BSE)
        return self.norm(x_BSE)


def _in_order(blocks: nnx.Dict) -> list[Block]:
    """Blocks by number: flax hands them back ordered as text, 10 before 2."""
    return [blocks[str(i)] for i in range(len(blocks))]


def document_positions(segment_ids_BS: Array) -> Array:
    """Positions (B, S) int32 that restart at 0 wherever the segment changes."""
    index = jnp.arange(segment_ids_BS.shape[1], dtype=jnp.int32)
    starts = jnp.pad(segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


class Abstract(NamedTuple):
    """A model without its numbers: graph, shapes and dtypes, and the logical axes of each parameter (tuples)."""

    graphdef: Any
    shapes: dict[str, Any]
    axes: dict[str, Any]


def abstract(
    config: ModelConfig,
    attention: kernels.AttentionFunction = kernels.attention,
    constrain: Constrain = unconstrained,
    cut: Layout | None = None,
    lora: LoraConfig | None = None,
) -> Abstract:
    """The graph of a Decoder, and two trees of its parameters: ShapeDtypeStructs, and tuples of axis names."""
    make = functools.partial(Decoder, config, attention=attention, constrain=constrain, cut=cut, lora=lora)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    axes = jax.tree.map(lambda p: p.get_metadata("out_sharding"), state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return Abstract(graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes))


def initialise(config: ModelConfig, key: Array, lora: LoraConfig | None = None) -> dict[str, Any]:
    """The initial parameters of a key (m1jax.model.seeds), a pure function: jit it with out_shardings."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(key), lora=lora)))


def create(
    config: ModelConfig, seed: int, attention: kernels.AttentionFunction = kernels.attention
) -> tuple[Any, dict[str, Any]]:
    """(graphdef, parameters) of a new model; `nnx.merge(graphdef, parameters)` is the Decoder."""
    parameters = jax.jit(initialise, static_argnums=0)(config, seeds.key(seed))
    return abstract(config, attention).graphdef, parameters


def unrolled(config: ModelConfig, parameters: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(graphdef, parameters) of the same model with every layer by itself under prefix/<layer>, as generation needs."""
    return abstract(config, cut=Layout(config.layer_kinds, (), 0, ())).graphdef, unstacked(config, parameters)


def unstacked(config: ModelConfig, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `unrolled`."""
    cut = layout(config)
    tree = {name: value for name, value in parameters.items() if name not in SECTIONS}
    tree[PREFIX] = {str(i): block_of(parameters, cut.path(i)) for i in range(config.num_layers)}
    return tree


def block_of(parameters: dict[str, Any], path: LayerPath) -> dict[str, Any]:
    """One layer's parameters, without the leading axis of stacked ones."""
    block = parameters[path.section][path.slot]
    return block if path.stack_index is None else jax.tree.map(lambda leaf: leaf[path.stack_index], block)
