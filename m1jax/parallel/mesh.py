"""The device mesh of a run."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from m1jax.config import MeshConfig, RunConfig
from m1jax.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor", "context")
BATCH_AXES = ("replica", "data", "fsdp")


def make(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A Mesh with the axes replica, data, fsdp, tensor, context over `devices` (default: all of them).

    Raises UserError where the axis sizes do not multiply out to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batches(config: RunConfig, mesh: Mesh) -> None:
    """Raises UserError where a stage's rows or tokens cannot be divided over the mesh."""
    rows = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    for i, stage in enumerate(config.stages):
        for batch, _ in stage.batches:
            if batch % rows:
                key = "global_batch" if batch == stage.global_batch else "ramp: a batch"
                raise UserError(
                    f"config key stages.{i}.{key} = {batch} rows cannot be divided over {rows} devices "
                    f"(replica x data x fsdp): choose a multiple of {rows}, or fewer devices."
                )
        if stage.row_length % mesh.shape["context"]:
            raise UserError(
                f"config key stages.{i}.row_length = {stage.row_length} cannot be divided over mesh.context = "
                f"{mesh.shape['context']}: choose a divisor."
            )
