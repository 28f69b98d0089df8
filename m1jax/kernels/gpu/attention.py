"""`kernels.attention` on an NVIDIA GPU: what computes it, the shapes made to fit, and the gradient.

The convolution and RoPE are XLA's, which fuses them. Attention is cuDNN's where it computes exactly this, which is
known before anything runs: rows of one document (`segment_ids` None), as many queries as keys, no logarithm asked for,
bfloat16, and a head_dim that the chip's cuDNN takes. Everything else is computed by the Pallas kernels.

Legend: B batch, S queries, T keys, H query heads, K KV heads, D head_dim.
"""

import dataclasses
import functools
import logging
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from m1jax.errors import UserError
from m1jax.kernels import reference, visible
from m1jax.kernels.arguments import AttentionLayer, Rows
from m1jax.kernels.gpu import backward, blocks
from m1jax.kernels.gpu.forward import forward
from m1jax.kernels.names import ATTENTION

Array = jax.Array

_HEAD_DIMS = (64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Static:
    """What is static about a call of the kernels."""

    scale: float
    tiles: blocks.Tiles
    interpret: bool


def attention(
    q: Array,
    k: Array,
    v: Array,
    layer: AttentionLayer,
    rows: Rows,
    *,
    return_lse: bool = False,
    chip: str | None = None,
    tiles: blocks.Tiles | None = None,
    interpret: bool = False,
) -> Any:
    """`kernels.attention` by cuDNN or by Pallas kernels, as the file's head says; which is logged once a case.

    Besides the arguments of that function, `chip` is a compute capability of `blocks.SHARED_MEMORY`, None that of the
    devices; `tiles` those of the kernels, None the table's; `interpret` runs the kernels on a CPU.

    Raises:
        UserError: a shape, dtype or device that is not supported.
    """
    chip = chip or compute_capability()
    _check(q, k, v, chip, interpret)
    q, k, v = reference.prepared(q, k, v, layer, rows)
    aligned = isinstance(rows.q_offset, int) and rows.q_offset == 0 and q.shape[1] == k.shape[1]
    if rows.segment_ids is None and aligned and not return_lse and cudnn_computes(q.dtype, q.shape[3], chip):
        _log("cuDNN", q, layer.window)
        return cudnn(q, k, v, window=layer.window, scale=layer.scale)
    _log("Pallas kernels", q, layer.window)
    out, lse = pallas(q, k, v, layer, rows, chip=chip, tiles=tiles, interpret=interpret)
    return (out, lse) if return_lse else out


def compute_capability() -> str:
    """That of the first device, "9.0" say; the kind of another device."""
    device = jax.devices()[0]
    return device.compute_capability if device.platform == "gpu" else device.device_kind


def cudnn_computes(dtype: Any, head_dim: int, chip: str) -> bool:
    """Whether cuDNN's attention takes these (check_is_flash_attention in jax._src.cudnn.fused_attention_stablehlo)."""
    return dtype == jnp.bfloat16 and head_dim % 8 == 0 and head_dim <= (128 if chip == "8.0" else 256)


def cudnn(
    q: Array, k: Array, v: Array, *, window: int | None, scale: float, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> Array:
    """Causal attention of whole rows, (B, S, H, D), by `jax.nn.dot_product_attention`, whose "xla" is its equal."""
    # It counts a window's keys without the query's own.
    reach = None if window is None or window >= k.shape[1] else (window - 1, 0)
    out = jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=reach, implementation=implementation
    )
    return checkpoint_name(out, ATTENTION)


def pallas(
    q: Array,
    k: Array,
    v: Array,
    layer: AttentionLayer,
    rows: Rows,
    *,
    chip: str,
    tiles: blocks.Tiles | None = None,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Output (B, S, H, D) and logarithm (B, S, H) by the kernels, of q, k and v after convolution and RoPE."""
    S, D = q.shape[1], q.shape[3]
    wide = next(size for size in _HEAD_DIMS if size >= D)
    tiles = tiles or blocks.tiles(chip, wide)
    keys = _padded(k.shape[1], tiles.forward.keys, tiles.dq.keys, tiles.dkv.keys)
    queries = _padded(S, tiles.forward.queries, tiles.dq.queries, tiles.dkv.queries)
    segments = _to(keys, rows.documents)
    first_BT = visible.first_keys(segments, layer.window)
    first_BT = jnp.where(first_BT == visible.PADDING, keys, first_BT)
    first_BS = rows.of_queries(first_BT, S)
    out, lse = _attention(
        Static(layer.scale, tiles, interpret),
        *(_to(length, x, wide) for length, x in ((queries, q), (keys, k), (keys, v))),
        jnp.pad(first_BS, ((0, 0), (0, queries - S)), constant_values=keys),
        _last_queries(segments, layer.window),
        jnp.asarray(rows.q_offset, jnp.int32)[None],
    )
    return out[:, :S, :, :D], lse[:, :, :S].transpose(0, 2, 1)


def _log(what: str, q: Array, window: int | None) -> None:
    span = "global" if window is None else f"window {window}"
    _log_once(f"attention gpu: {what} for {span} layers of head_dim {q.shape[3]} in {q.dtype}.")


@functools.cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).info(message)


def _check(q: Array, k: Array, v: Array, chip: str, interpret: bool) -> None:
    H, D = q.shape[2:]
    K = k.shape[2]
    if chip not in blocks.SHARED_MEMORY:
        raise UserError(
            f"attention gpu has no kernel for {chip}: compute capabilities {', '.join(blocks.SHARED_MEMORY)} are "
            "supported; set model.attention to reference."
        )
    if D > 256 or D % 2:
        raise UserError(f"attention gpu has head_dim {D}: even sizes up to 256 are supported; use reference.")
    if H % K:
        raise UserError(f"attention gpu has {H} query heads for {K} KV heads: make it a multiple.")
    # Triton compiles exact float32 products into minutes of ptxas; the interpreter, for tests, has them for nothing.
    allowed = (jnp.bfloat16, jnp.float32) if interpret else (jnp.bfloat16,)
    if not q.dtype == k.dtype == v.dtype or q.dtype not in allowed:
        raise UserError(
            f"attention gpu has q, k, v of {q.dtype}, {k.dtype}, {v.dtype}: all bfloat16 is supported; set "
            "model.compute_dtype to bfloat16 or model.attention to reference."
        )


def _padded(length: int, *sides: int) -> int:
    """The next multiple of every tile's side; sides are powers of two."""
    side = max(sides)
    return -(-length // side) * side


def _to(length: int, x: Array, width: int | None = None) -> Array:
    """`x` with zeros after its tokens, and after its last axis."""
    pads = [(0, 0)] * x.ndim
    pads[1] = (0, length - x.shape[1])
    if width is not None:
        pads[-1] = (0, width - x.shape[-1])
    return jnp.pad(x, pads)


def _last_queries(segments_BT: Array, window: int | None) -> Array:
    """(B, T) int32, the last key whose query sees each key, -1 at padding: the end of its document or of the window."""
    T = segments_BT.shape[1]
    index = jnp.arange(T, dtype=jnp.int32)
    same_as_next = jnp.pad(segments_BT[:, 1:] == segments_BT[:, :-1], ((0, 0), (0, 1)))
    ends = jax.lax.cummin(jnp.where(same_as_next, T, index), axis=1, reverse=True)
    if window is not None:
        ends = jnp.minimum(ends, index + (window - 1))
    return jnp.where(segments_BT > 0, ends, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    static: Static, q: Array, k: Array, v: Array, first: Array, last: Array, offset: Array
) -> tuple[Array, Array]:
    return forward(q, k, v, first, offset, scale=static.scale, tile=static.tiles.forward, interpret=static.interpret)


def _forward_rule(
    static: Static, q: Array, k: Array, v: Array, first: Array, last: Array, offset: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    out, lse = (checkpoint_name(x, ATTENTION) for x in _attention(static, q, k, v, first, last, offset))
    return (out, lse), (q, k, v, first, last, offset, out, lse)


def _backward_rule(static: Static, saved: tuple[Array, ...], gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    q, k, v, first, last, offset, out, lse = saved
    d_out, d_lse = gradients
    real_BHS = (first < k.shape[1])[:, None]
    # A query that sees nothing has no weight anywhere, so its logarithm must not matter.
    base_2 = jnp.where(real_BHS, lse * blocks.LOG2_E, -blocks.MASKED)
    delta_BSH = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    delta_BHS = jnp.where(real_BHS, delta_BSH.transpose(0, 2, 1) - d_lse, 0.0)
    more: dict[str, Any] = {"scale": static.scale, "interpret": static.interpret}
    dq = backward.dq(q, k, v, d_out, first, base_2, delta_BHS, offset, tile=static.tiles.dq, **more)
    dk, dv = backward.dkv(q, k, v, d_out, first, last, base_2, delta_BHS, offset, tile=static.tiles.dkv, **more)
    return dq, dk, dv, None, None, None


_attention.defvjp(_forward_rule, _backward_rule)
