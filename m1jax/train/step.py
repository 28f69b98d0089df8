"""One optimiser step as a pure function of (state, batch)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m1jax.optim.clipping import ClipState
from m1jax.train.norms import KindOf, by_kind
from m1jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
"""tokens, targets, segment_ids, positions int32 (rows, S); weights fp32 (rows, S)."""

LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Any]]
"""(params, batch, rope_base) to (sum of the targets' losses in nats, number of targets), both fp32 (); the number may
stand in a dict as "targets", beside other sums over targets whose means are to be reported."""


Split = Callable[[Batch], Batch]
"""A batch to its micro-batches, stacked on a leading axis."""


def train_step(
    state: TrainState,
    batch: Batch,
    rope_base: jax.Array,
    judge_norm: jax.Array,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformationExtraArgs,
    kind_of: KindOf,
    split: Split | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Moves the state by one batch.

    The loss is a sum over targets divided by their count over the global batch, never a mean of means: neither the way
    rows are spread over devices nor the micro-batches that `split` makes change it. `judge_norm` (bool ()) lets the
    step-skipping clip act. Returns the new state and fp32 scalars: loss (nats a target), targets, grad_norm (before the
    clip), norm_mean (of the accepted norms before it), skipped (0 or 1), skipped_total, nonfinite_in_row, and norms of
    gradients, updates and parameters (those before the step) by layer kind, which `kind_of` tells.
    """
    total, sums, grads = _sums(loss_fn, state.params, batch, rope_base, split)
    count = sums.pop("targets")
    divisor = jnp.maximum(count, 1.0)
    loss = total / divisor
    # The loss itself may be the first thing that is not finite; the clip must see it in the norm that it judges.
    scale = jnp.where(jnp.isfinite(loss), 1.0 / divisor, jnp.nan)
    grads = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), grads, state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step, active=judge_norm)
    assert isinstance(opt_state, ClipState)
    history = opt_state.history
    metrics = {
        "loss": loss,
        "targets": count,
        **{name: value / divisor for name, value in sums.items()},
        "grad_norm": history.last_norm,
        "norm_mean": history.last_mean,
        "skipped": history.last_skipped.astype(jnp.float32),
        "skipped_total": history.skipped.astype(jnp.float32),
        "nonfinite_in_row": history.nonfinite_in_row.astype(jnp.float32),
        **by_kind("grad_norm", grads, kind_of),
        **by_kind("update_norm", updates, kind_of),
        **by_kind("param_norm", state.params, kind_of),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _sums(
    loss_fn: LossFn, params: Any, batch: Batch, rope_base: jax.Array, split: Split | None
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Summed loss, its other sums, and the gradient of the sum; over micro-batches in float32, one after the other."""

    def evaluate(part: Batch) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        (total, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part, rope_base)
        return total, dict(aux) if isinstance(aux, Mapping) else {"targets": aux}, grads

    if split is None:
        return evaluate(batch)

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, evaluate(part)), None

    parts = split(batch)
    shapes = jax.eval_shape(evaluate, jax.tree.map(lambda x: x[0], parts))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, start, parts)[0]
