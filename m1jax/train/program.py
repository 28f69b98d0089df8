"""The step of a run as one compiled program: the function, and the shapes, dtypes and shardings it is compiled for.

`m1 train` runs this program and `m1 plan` lowers it for devices that need not exist: both get it from `build`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from m1jax.config import RunConfig, StageConfig
from m1jax.optim import optimizer as optimizers
from m1jax.parallel import rules
from m1jax.train.norms import kinds_of
from m1jax.train.state import TrainState
from m1jax.train.step import Batch, LossFn, train_step

BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}
StepArguments = tuple[TrainState, Batch, Any, Any]
"""State, batch, RoPE base (fp32 ()) and whether norms are judged (bool ()), as `train_step` takes them."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The optimiser step of a run on a mesh; its state is donated."""

    mesh: Mesh
    optimizer: optax.GradientTransformationExtraArgs
    state: TrainState
    """The abstract state: ShapeDtypeStructs with NamedShardings."""
    step: Any
    """The jitted `train_step`: call it as `step(*arguments)`."""

    def create(self, init_params: Callable[[], Any]) -> TrainState:
        """The first state from `init_params()`, made where it belongs."""
        make = jax.jit(
            lambda: TrainState.create(init_params(), self.optimizer), out_shardings=rules.shardings_of(self.state)
        )
        return make()

    def begin(self, params: Any) -> TrainState:
        """The first state from given parameters, laid out as `state.params`; they are donated."""
        make = jax.jit(
            functools.partial(TrainState.create, optimizer=self.optimizer),
            donate_argnums=0,
            out_shardings=rules.shardings_of(self.state),
        )
        return make(params)

    def arguments(self, rows: int, row_length: int) -> StepArguments:
        """The abstract arguments of a step over a global batch of `rows` rows of `row_length` tokens."""
        sharding = rules.batch_sharding(self.mesh)
        batch: Any = {
            name: jax.ShapeDtypeStruct((rows, row_length), dtype, sharding=sharding)
            for name, dtype in BATCH_DTYPES.items()
        }
        scalar = rules.replicated(self.mesh)
        base = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
        judged = jax.ShapeDtypeStruct((), jnp.bool_, sharding=scalar)
        return self.state, batch, base, judged

    def lower(self, stage: StageConfig, rows: int | None = None) -> jax.stages.Lowered:
        """The step lowered for a stage's rows (default: its full batch), ready to compile for the mesh's devices."""
        return self.step.lower(*self.arguments(stage.global_batch if rows is None else rows, stage.row_length))


def build(config: RunConfig, mesh: Mesh, *, loss_fn: LossFn, params: Any, params_axes: Any) -> Program:
    """The program of a run from its parameters' shapes and dtypes and their logical axes (two equal trees).

    The mesh's devices may be those of a topology that nobody holds. Raises UserError where a parameter does not divide
    over the mesh.
    """
    optimizer = optimizers.make(config)
    state = abstract_state(params, params_axes, mesh, optimizer)
    shardings, scalar = rules.shardings_of(state), rules.replicated(mesh)
    parts = config.train.accumulation
    split = functools.partial(rules.micro_batches, mesh, parts=parts) if parts > 1 else None
    step = jax.jit(
        functools.partial(
            train_step, loss_fn=loss_fn, optimizer=optimizer, kind_of=kinds_of(config.model), split=split
        ),
        donate_argnums=0,
        in_shardings=(shardings, rules.batch_sharding(mesh), scalar, scalar),
        out_shardings=(shardings, scalar),
    )
    return Program(mesh, optimizer, state, step)


def abstract_state(params: Any, axes: Any, mesh: Mesh, optimizer: optax.GradientTransformationExtraArgs) -> TrainState:
    """Shapes, dtypes and shardings of the whole state, from the parameters' shapes and logical axes.

    What the optimiser keeps for a parameter in its shape lies as the parameter does; the row and column means of a
    factored second moment, thousands of times smaller, lie on every device.
    """
    shardings = rules.parameter_shardings(mesh, params, axes)
    everywhere = rules.replicated(mesh)

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree_map_params(
        optimizer,
        lambda leaf, param, sharding: place(leaf, sharding if leaf.shape == param.shape else everywhere),
        jax.eval_shape(optimizer.init, params),
        params,
        shardings,
        transform_non_params=lambda leaf: place(leaf, everywhere),
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(step=step, params=jax.tree.map(place, params, shardings), opt_state=opt_state)


def stage_scalars(stage: StageConfig) -> tuple[np.float32, np.bool_]:
    """The RoPE base and whether norms are judged, as the step takes them in this stage."""
    return np.float32(stage.rope_base), np.bool_(stage.skip_steps)
