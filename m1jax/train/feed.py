"""Batches on their way to the devices: the next one is placed while the devices compute."""

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from m1jax.train.objective import TOKEN_COLUMNS, Column

HostBatch = Mapping[str, np.ndarray]


class Fed(NamedTuple):
    """A batch as it was read, the same on the devices, and the seconds that the loop waited for it."""

    host: HostBatch
    device: dict[str, jax.Array]
    waited: float


class Feed:
    """Two batches: one that a step computes on, one that `prepare` places on the devices meanwhile."""

    def __init__(self, source: Iterator[HostBatch], mesh: Mesh, columns: Mapping[str, Column] = TOKEN_COLUMNS) -> None:
        """`source` yields this process's share of every batch (see `mesh.row_share`); `columns` are placed of it."""
        self._source = source
        self._shardings = {name: rules.batch_sharding(mesh, column.axes) for name, column in columns.items()}
        self._parts = meshes.row_share(mesh)[1]
        self._next: Fed | None = None

    def prepare(self) -> None:
        """Reads the next batch and starts to transfer it; call it once a step is dispatched."""
        begun = time.perf_counter()
        host = next(self._source)
        waited = time.perf_counter() - begun
        device = {name: self._place(host[name], sharding) for name, sharding in self._shardings.items()}
        self._next = Fed(host, device, waited)

    def _place(self, value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        shape = (value.shape[0] * self._parts, *value.shape[1:])
        return jax.make_array_from_process_local_data(sharding, value, shape)

    def take(self) -> Fed:
        """The batch that was prepared, or else the next one."""
        if self._next is None:
            self.prepare()
        assert self._next is not None
        fed, self._next = self._next, None
        return fed
