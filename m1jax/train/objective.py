"""The interface of an objective: what a run minimises, as the step, the loop, checkpoints and plans see it.

Legend: B rows of a batch, S tokens of a row.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Batch = Mapping[str, jax.Array]
"""The columns of a batch by name, as `Objective.columns` describes them."""


class Ratio(NamedTuple):
    """A quantity of a batch as a sum and what it is divided by, both float32 ().

    Micro-batches and devices add both, and one division comes at the end: the result is never a mean of means.
    """

    sum: jax.Array
    denominator: jax.Array

    @property
    def value(self) -> jax.Array:
        """Sum over denominator, float32 (); the sum itself where the denominator is 0."""
        return self.sum / self.divisor

    @property
    def divisor(self) -> jax.Array:
        """The denominator, or 1 where it is 0."""
        return jnp.where(self.denominator > 0, self.denominator, 1.0)


class Terms(NamedTuple):
    """The loss of a batch, and what else is reported of it, by name."""

    loss: Ratio
    reported: Mapping[str, Ratio]


class StageScalars(NamedTuple):
    """The values that a stage gives to each of its steps: a new stage compiles nothing for them."""

    rope_base: Any
    """Base of the rotary positions, float32 ()."""
    skip_steps: Any
    """True where the step-skipping clip acts, bool ()."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One array of a batch: its dtype, and the logical axes that its shape and its layout over devices follow.

    "batch" is the rows of the global batch, "sequence" the tokens of a row.
    """

    dtype: Any
    axes: tuple[str, ...] = ("batch", "sequence")

    def shape(self, rows: int, row_length: int) -> tuple[int, ...]:
        """The shape in a global batch of `rows` rows of `row_length` tokens."""
        sizes = {"batch": rows, "sequence": row_length}
        return tuple(sizes[axis] for axis in self.axes)


TOKEN_COLUMNS: Mapping[str, Column] = {
    "tokens": Column(jnp.int32),
    "targets": Column(jnp.int32),
    "segment_ids": Column(jnp.int32),
    "positions": Column(jnp.int32),
    "weights": Column(jnp.float32),
}
"""The columns that every packed row gives (rows/): all (B, S); see `m1jax.rows` for their meaning."""


class Objective(abc.ABC):
    """What a run minimises; one file in objectives/ each.

    Parameters are nested dicts of arrays. Those for which `trained` is False are frozen: they have no gradient and no
    moments, and they may be bfloat16.
    """

    columns: Mapping[str, Column] = TOKEN_COLUMNS
    """The columns of its batches."""
    piece_columns: tuple[str, ...] = ()
    """Those of the columns that rows keep for each piece, such as the number of a pair; see `m1jax.rows`."""

    @property
    @abc.abstractmethod
    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of all parameters: a tree of jax.ShapeDtypeStruct."""

    @property
    @abc.abstractmethod
    def axes(self) -> dict[str, Any]:
        """Logical axes of all parameters: a tuple of names for each leaf of `shapes`."""

    @abc.abstractmethod
    def initialise(self) -> dict[str, Any]:
        """All parameters before the first step: a pure function, compiled so that each is made where it belongs."""

    @abc.abstractmethod
    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """The loss of a micro-batch and the reported quantities; differentiated with respect to trained parameters."""

    def trained(self, path: str) -> bool:
        """True where the optimiser moves the parameter at `path` (its keys joined by "/"); by default always."""
        del path
        return True

    def begin(self, read: Callable[[Any], Any], target: Any) -> Any:
        """All parameters of a run that begins with a model which exists, as the abstract tree `target` has them.

        `read` gives that model's, for an abstract tree of them; by default they are all there is.
        """
        return read(target)

    def prepare(self, params: dict[str, Any], batch: Batch) -> Batch:
        """The batch with columns that depend on all of it, such as statistics, before it is cut into micro-batches."""
        del params
        return batch

    def kind_of(self, path: tuple[Any, ...]) -> str:
        """The group under which the norms of the parameter at `path` (jax's key path) are reported."""
        return jax.tree_util.keystr(path, simple=True, separator="/").split("/")[0]

    @abc.abstractmethod
    def flops(self, positions: np.ndarray) -> float:
        """Model FLOPs of a step over tokens at `positions` (int, any shape); recomputation is not counted."""
