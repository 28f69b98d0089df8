"""Holding back gradients far above the usual: which steps are skipped, and how the others are scaled.

Every policy is applied inside `guard`, which first skips a step whose gradient is not finite.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from m1jax.config import ClipConfig
from m1jax.model.layout import stacked


class NormHistory(NamedTuple):
    """Gradient norms so far, on the device and in every checkpoint.

    norms: fp32 (history,), the last accepted global gradient norms, a ring. accepted: int32, norms stored in all.
    skips_in_row, nonfinite_in_row: int32. skipped: int32, steps skipped in all. last_norm: fp32. last_mean: fp32, of
    the stored norms before it, 0 where there are none. last_skipped: bool.
    """

    norms: jax.Array
    accepted: jax.Array
    skips_in_row: jax.Array
    nonfinite_in_row: jax.Array
    skipped: jax.Array
    last_norm: jax.Array
    last_mean: jax.Array
    last_skipped: jax.Array


class ClipState(NamedTuple):
    """State of `guard`: the norms, and the state of the transformation inside."""

    history: NormHistory
    inner: Any


def no_history(config: ClipConfig) -> NormHistory:
    """The history before the first step."""
    zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return NormHistory(
        norms=jnp.zeros((config.history,), jnp.float32),
        accepted=zero,
        skips_in_row=zero,
        nonfinite_in_row=zero,
        skipped=zero,
        last_norm=nothing,
        last_mean=nothing,
        last_skipped=jnp.zeros((), bool),
    )


def threshold(config: ClipConfig, norms: jax.Array) -> jax.Array:
    """The gradient norm, fp32 (), above which the policy skips, given a full history of accepted ones."""
    if config.policy == "skip_spikes":  # report, Algorithm 1
        return config.factor * norms.mean() + config.margin
    if config.policy == "skip_sigmas":
        return norms.mean() + config.sigmas * norms.std()
    return jnp.full((), jnp.inf)


def decide(config: ClipConfig, history: NormHistory, norm: jax.Array, active: Any = True) -> NormHistory:
    """The history after a step whose gradient has `norm` (fp32 ()); its `last_skipped` says whether it is skipped.

    With a full history, a norm above the policy's threshold is skipped, at most `max_skips` times in a row, after which
    the update is forced (report, Algorithm 1). A skipped norm is not stored. One that is not finite is skipped always:
    `NaN > threshold` is false, so Algorithm 1 alone would accept it. `active` (bool ()) says whether finite norms are
    compared with the threshold; they are stored either way.
    """
    finite = jnp.isfinite(norm)
    spike = (history.accepted >= config.history) & (norm > threshold(config, history.norms))
    skip = ~finite | (spike & jnp.asarray(active) & (history.skips_in_row < config.max_skips))
    stored = history.norms.at[history.accepted % config.history].set(norm)
    held = jnp.minimum(history.accepted, config.history)
    return NormHistory(
        norms=jnp.where(skip, history.norms, stored),
        accepted=history.accepted + (~skip).astype(jnp.int32),
        skips_in_row=jnp.where(skip, history.skips_in_row + 1, 0),
        nonfinite_in_row=jnp.where(finite, 0, history.nonfinite_in_row + 1),
        skipped=history.skipped + skip.astype(jnp.int32),
        last_norm=norm,
        last_mean=history.norms.sum() / jnp.maximum(held, 1),
        last_skipped=skip,
    )


def guard(inner: optax.GradientTransformation, config: ClipConfig) -> optax.GradientTransformationExtraArgs:
    """`inner` behind the policy: on a skip neither parameters nor `inner`'s state move; the data has moved on.

    The update takes `active` (bool (), default True), as `decide` does.
    """

    def init(params: optax.Params) -> ClipState:
        return ClipState(no_history(config), inner.init(params))

    def update(
        grads: optax.Updates, state: ClipState, params: optax.Params | None = None, *, active: Any = True, **_: Any
    ) -> tuple[optax.Updates, ClipState]:
        history = decide(config, state.history, global_norm(grads), active)

        def hold() -> tuple[optax.Updates, Any]:
            return jax.tree.map(jnp.zeros_like, grads), state.inner

        def move() -> tuple[optax.Updates, Any]:
            return inner.update(grads, state.inner, params)

        updates, inner_state = jax.lax.cond(history.last_skipped, hold, move)
        return updates, ClipState(history, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all arrays of a tree, fp32 (), summed in float32.

    optax.global_norm sums in the arrays' dtype: of a thousand norms of 1 in bfloat16 it makes 16 instead of 31.6.
    """
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def scaling(config: ClipConfig) -> optax.GradientTransformation:
    """How a step that is taken is scaled: to a global norm, or each unit by its parameters' norm."""
    if config.policy == "adaptive":
        return _adaptive(config.max_ratio)
    return _by_global_norm(config.max_norm) if config.max_norm else optax.identity()


def _by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm with `global_norm`, for gradients of any dtype."""

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        norm = global_norm(grads)

        def scaled(grad: jax.Array) -> jax.Array:
            return jnp.where(norm < max_norm, grad, (grad.astype(jnp.float32) / norm * max_norm).astype(grad.dtype))

        return jax.tree.map(scaled, grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _adaptive(max_ratio: float) -> optax.GradientTransformation:
    """optax.adaptive_grad_clip (Brock et al., arXiv 2102.06171), where layers are stacked each layer by itself."""
    clip = optax.adaptive_grad_clip(max_ratio)

    def one(grad: jax.Array, param: jax.Array) -> jax.Array:
        wide = grad.astype(jnp.float32), param.astype(jnp.float32)
        return clip.update(wide[0], optax.EmptyState(), wide[1])[0].astype(grad.dtype)

    def leaf(path: tuple[Any, ...], grad: jax.Array, param: jax.Array) -> jax.Array:
        return (jax.vmap(one) if stacked(path) else one)(grad, param)

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return jax.tree_util.tree_map_with_path(leaf, grads, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
