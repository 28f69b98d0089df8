"""One optimiser step as a pure function of (state, batch)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m1jax.optim import masks
from m1jax.optim.clipping import ClipState
from m1jax.train.hooks.hook import StateHook
from m1jax.train.norms import by_kind
from m1jax.train.objective import Batch, Objective, StageScalars, Terms
from m1jax.train.state import TrainState

Split = Callable[[Batch], Batch]
"""A batch to its micro-batches, stacked on a leading axis."""


def train_step(
    state: TrainState,
    batch: Batch,
    stage: StageScalars,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    split: Split | None = None,
    hooks: Sequence[StateHook] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Moves the state by one batch.

    The loss is a sum divided by its denominator over the global batch, never a mean of means: neither the way rows are
    spread over devices nor the micro-batches that `split` makes change it. Only trained parameters are differentiated.
    A batch whose denominator is 0 has no loss: it is NaN, never 0, and such a step is skipped.

    Returns the new state and float32 scalars: loss and its denominator, grad_norm (before the clip), norm_mean (of the
    accepted norms before it), skipped (0 or 1), skipped_total, nonfinite_in_row, every quantity that the objective
    reports, and norms of gradients, updates and parameters (those before the step) by the objective's kinds.
    """
    batch = objective.prepare(state.all_params, batch)
    terms, grads = _summed(objective, state, batch, stage, split)
    loss = jnp.where(terms.loss.denominator > 0, terms.loss.value, jnp.nan)
    # The loss itself may be the first value that is not finite; the clip must see it in the norm that it reads.
    scale = jnp.where(jnp.isfinite(loss), 1.0 / terms.loss.divisor, jnp.nan)
    grads = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), grads, state.params)
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, step=state.step, active=stage.skip_steps
    )
    assert isinstance(opt_state, ClipState)
    history = opt_state.history
    metrics = {
        "loss": loss,
        "denominator": terms.loss.denominator,
        **{name: ratio.value for name, ratio in terms.reported.items()},
        "grad_norm": history.last_norm,
        "norm_mean": history.last_mean,
        "skipped": history.last_skipped.astype(jnp.float32),
        "skipped_total": history.skipped.astype(jnp.float32),
        "nonfinite_in_row": history.nonfinite_in_row.astype(jnp.float32),
        **by_kind("grad_norm", grads, objective.kind_of),
        **by_kind("update_norm", updates, objective.kind_of),
        **by_kind("param_norm", state.params, objective.kind_of),
    }
    params = optax.apply_updates(state.params, updates)
    kept = {hook.name: hook.update(state.hooks[hook.name], params) for hook in hooks}
    return TrainState(state.step + 1, params, opt_state, state.frozen, kept), metrics


def _summed(
    objective: Objective, state: TrainState, batch: Batch, stage: StageScalars, split: Split | None
) -> tuple[Terms, Any]:
    """The terms, and the gradient of the loss's sum; over micro-batches in float32, one after the other."""

    def evaluate(part: Batch) -> tuple[Terms, Any]:
        def loss_sum(params: Any) -> tuple[jax.Array, Terms]:
            terms = objective.terms(masks.merge(params, state.frozen) if state.frozen else params, part, stage)
            return terms.loss.sum, terms

        (_, terms), grads = jax.value_and_grad(loss_sum, has_aux=True)(state.params)
        return terms, grads

    if split is None:
        return evaluate(batch)

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, evaluate(part)), None

    parts = split(batch)
    shapes = jax.eval_shape(evaluate, jax.tree.map(lambda x: x[0], parts))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, start, parts)[0]
