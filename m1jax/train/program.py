"""The step of a run as one compiled program: the function, and the shapes, dtypes and shardings it is compiled for.

`m1 train` runs this program and `m1 plan` lowers it for devices that need not exist: both get it from `build`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from m1jax.config import RunConfig, StageConfig
from m1jax.optim import masks
from m1jax.optim import optimizer as optimizers
from m1jax.parallel import rules
from m1jax.train.hooks.hook import StateHook
from m1jax.train.objective import Batch, Objective, StageScalars
from m1jax.train.state import TrainState
from m1jax.train.step import train_step

StepArguments = tuple[TrainState, Batch, StageScalars]
"""The abstract arguments of `train_step`."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The optimiser step of a run on a mesh; its state is donated."""

    mesh: Mesh
    objective: Objective
    hooks: tuple[StateHook, ...]
    optimizer: optax.GradientTransformationExtraArgs
    state: TrainState
    """The abstract state: ShapeDtypeStructs with NamedShardings."""
    step: Any
    """The jitted `train_step`: call it as `step(*arguments)`."""

    def create(self) -> TrainState:
        """The first state, from the objective's initial parameters, each made where it belongs."""
        return jax.jit(lambda: self._first(self.objective.initialise()), out_shardings=self._shardings)()

    def begin(self, params: Any) -> TrainState:
        """The first state from given parameters, trained and frozen, laid out as `params`; they are donated."""
        return jax.jit(self._first, donate_argnums=0, out_shardings=self._shardings)(params)

    @property
    def params(self) -> Any:
        """The abstract parameters, trained and frozen in one tree."""
        return self.state.all_params

    def arguments(self, rows: int, row_length: int) -> StepArguments:
        """The abstract arguments of a step over a global batch of `rows` rows of `row_length` tokens."""
        batch: Any = {
            name: jax.ShapeDtypeStruct(
                column.shape(rows, row_length), column.dtype, sharding=rules.batch_sharding(self.mesh, column.axes)
            )
            for name, column in self.objective.columns.items()
        }
        scalar = rules.replicated(self.mesh)
        base = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
        skips = jax.ShapeDtypeStruct((), jnp.bool_, sharding=scalar)
        return self.state, batch, StageScalars(base, skips)

    def lower(self, stage: StageConfig, rows: int | None = None) -> jax.stages.Lowered:
        """The step lowered for a stage's rows (default: its full batch), ready to compile for the mesh's devices."""
        return self.step.lower(*self.arguments(stage.global_batch if rows is None else rows, stage.row_length))

    def _first(self, params: Any) -> TrainState:
        return _first_state(params, self.objective, self.optimizer, self.hooks)

    @property
    def _shardings(self) -> TrainState:
        return rules.shardings_of(self.state)


def build(config: RunConfig, objective: Objective, mesh: Mesh, hooks: Sequence[StateHook] = ()) -> Program:
    """The program of a run: it minimises `objective` over `mesh`; its step also updates the state of `hooks`.

    The mesh's devices may be those of a topology that is not attached. Raises UserError where a parameter does not
    divide over the mesh.
    """
    optimizer = optimizers.make(config)
    state = abstract_state(objective, mesh, optimizer, hooks)
    shardings, scalar = rules.shardings_of(state), rules.replicated(mesh)
    batch = {name: rules.batch_sharding(mesh, column.axes) for name, column in objective.columns.items()}
    parts = config.train.accumulation
    split = functools.partial(rules.micro_batches, mesh, parts=parts) if parts > 1 else None
    step = jax.jit(
        functools.partial(train_step, objective=objective, optimizer=optimizer, split=split, hooks=tuple(hooks)),
        donate_argnums=0,
        in_shardings=(shardings, batch, scalar),
        out_shardings=(shardings, scalar),
    )
    return Program(mesh, objective, tuple(hooks), optimizer, state, step)


def _first_state(
    params: Any, objective: Objective, optimizer: optax.GradientTransformationExtraArgs, hooks: Sequence[StateHook]
) -> TrainState:
    trained, frozen = masks.split(params, objective.trained)
    return TrainState.create(trained, optimizer, frozen, {hook.name: hook.init(trained) for hook in hooks})


def abstract_state(
    objective: Objective,
    mesh: Mesh,
    optimizer: optax.GradientTransformationExtraArgs,
    hooks: Sequence[StateHook] = (),
) -> TrainState:
    """Shapes, dtypes and shardings of the whole state, from the parameters' shapes and logical axes.

    What the optimiser keeps for a parameter in its shape is laid out as the parameter is; the row and column means of a
    factored second moment, thousands of times smaller, are on every device.
    """
    all_shardings = rules.parameter_shardings(mesh, objective.shapes, objective.axes)
    everywhere = rules.replicated(mesh)
    state = jax.eval_shape(lambda params: _first_state(params, objective, optimizer, hooks), objective.shapes)
    shardings, frozen = masks.split(all_shardings, objective.trained)

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return TrainState(
        step=place(state.step, everywhere),
        params=jax.tree.map(place, state.params, shardings),
        opt_state=_like_parameters(state.opt_state, state.params, shardings, everywhere),
        frozen=jax.tree.map(place, state.frozen, frozen),
        hooks=_like_parameters(state.hooks, state.params, shardings, everywhere),
    )


def _like_parameters(tree: Any, params: Any, shardings: Any, everywhere: Any) -> Any:
    """A tree with each leaf laid out as the parameter whose path its own path ends in, if their shapes are equal."""
    known = {
        _keys(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        keys = _keys(path)
        found = next((known[keys[i:]] for i in range(len(keys)) if keys[i:] in known), None)
        sharding = found[1] if found is not None and found[0] == leaf.shape else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def stage_scalars(stage: StageConfig) -> StageScalars:
    """The stage's scalars as the step takes them."""
    return StageScalars(np.float32(stage.rope_base), np.bool_(stage.skip_steps))
