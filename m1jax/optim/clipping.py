"""Adaptive gradient clipping that skips steps (Baichuan-M1 report, Algorithm 1), as an optax wrapper."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from m1jax.config import SkipConfig


class SkipState(NamedTuple):
    """State of `skip_spikes`, saved with every checkpoint.

    norms: fp32 (history,), the last accepted global gradient norms, a ring. accepted: int32, norms stored in all.
    skips_in_row: int32. skipped: int32, steps skipped in all. last_norm: fp32. last_skipped: bool. inner: state of
    the wrapped transformation.
    """

    norms: jax.Array
    accepted: jax.Array
    skips_in_row: jax.Array
    skipped: jax.Array
    last_norm: jax.Array
    last_skipped: jax.Array
    inner: Any


def skip_spikes(inner: optax.GradientTransformation, config: SkipConfig) -> optax.GradientTransformationExtraArgs:
    """Leaves out an update whose gradient norm stands far above the recent ones.

    With a full history and n > factor · mean + margin, the step is skipped, at most `max_skips` times in a row, after
    which the update is forced (report, Algorithm 1). On a skip neither parameters, moments nor the history move; the
    data has moved on. A norm that is not finite is skipped always and never stored: `NaN > threshold` is false, so
    Algorithm 1 alone would accept it.

    The update takes `active` (bool scalar, default True): whether norms are judged; they are stored either way.
    """

    def init(params: optax.Params) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(
            norms=jnp.zeros((config.history,), jnp.float32),
            accepted=zero,
            skips_in_row=zero,
            skipped=zero,
            last_norm=jnp.zeros((), jnp.float32),
            last_skipped=jnp.zeros((), bool),
            inner=inner.init(params),
        )

    def update(
        grads: optax.Updates, state: SkipState, params: optax.Params | None = None, *, active: Any = True, **_: Any
    ) -> tuple[optax.Updates, SkipState]:
        norm = optax.global_norm(grads).astype(jnp.float32)
        finite = jnp.isfinite(norm)
        full = state.accepted >= config.history
        spike = full & (norm > config.factor * state.norms.mean() + config.margin)
        skip = ~finite | (spike & jnp.asarray(active) & (state.skips_in_row < config.max_skips))

        def hold() -> tuple[optax.Updates, Any]:
            return jax.tree.map(jnp.zeros_like, grads), state.inner

        def move() -> tuple[optax.Updates, Any]:
            return inner.update(grads, state.inner, params)

        updates, inner_state = jax.lax.cond(skip, hold, move)
        stored = state.norms.at[state.accepted % config.history].set(norm)
        return updates, SkipState(
            norms=jnp.where(skip, state.norms, stored),
            accepted=state.accepted + (~skip).astype(jnp.int32),
            skips_in_row=jnp.where(skip, state.skips_in_row + 1, 0),
            skipped=state.skipped + skip.astype(jnp.int32),
            last_norm=norm,
            last_skipped=skip,
            inner=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
