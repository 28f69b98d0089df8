"""The device mesh of a run."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from m1jax.config import MeshConfig, RunConfig, StageConfig
from m1jax.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor", "context")
BATCH_AXES = ("replica", "data", "fsdp")


def make(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A Mesh with the axes replica, data, fsdp, tensor, context over `devices` (default: all of them).

    Only `replica` crosses slices. Raises UserError where the axis sizes do not multiply out to the number of devices,
    or cannot be laid over them.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def over_tensor(tensor: int) -> Mesh | None:
    """A mesh that splits a model over `tensor` devices, None for one; raises UserError where there are fewer."""
    if tensor == 1:
        return None
    devices = jax.devices()
    if not 1 <= tensor <= len(devices):
        raise UserError(f"--tensor {tensor} needs as many devices, there are {len(devices)}: choose a smaller number.")
    return make(MeshConfig(tensor=tensor), devices[:tensor])


def _arranged(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices as an array of `shape`: neighbours on a TPU's torus stay neighbours, and slices are along `replica`."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"mesh.replica = {shape[0]} does not spread over the {slices} slices of the devices: set it to "
            f"{slices} or a multiple, so that only `replica` crosses the data-centre network."
        )
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        inside = (shape[0] // slices, *shape[1:])
        across = (slices, *(1 for _ in shape[1:]))
        return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError) as error:
        sizes = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
        raise UserError(
            f"mesh {sizes} cannot be laid over these {len(devices)} {devices[0].device_kind} devices ({error}): choose "
            f"other axis sizes."
        ) from error


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads part `index` of `count` equal parts of every batch's rows.

    Processes whose devices hold the same rows (they differ in tensor or context) read the same part. Raises UserError
    where the rows of two processes overlap only in part.
    """
    return row_share_of(mesh.devices, jax.process_index())


def row_share_of(devices: np.ndarray, process: int) -> tuple[int, int]:
    """`row_share` of one process on a mesh's devices, an array over AXES."""
    shards = math.prod(devices.shape[: len(BATCH_AXES)])
    held: dict[int, set[int]] = {}
    for shard, holders in enumerate(devices.reshape(shards, -1)):
        for device in holders:
            held.setdefault(device.process_index, set()).add(shard)
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, parts)) != shards or len({len(part) for part in parts}) != 1:
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, devices.shape, strict=True))
        raise UserError(
            f"on a mesh of {sizes}, processes hold rows of a batch that overlap in part: let the number of devices of "
            f"a process be a multiple or a divisor of mesh.tensor x mesh.context = {devices.size // shards}."
        )
    return parts.index(tuple(sorted(held[process]))), len(parts)


def check_batches(config: RunConfig, mesh: Mesh, stages: Sequence[StageConfig] | None = None) -> None:
    """Raises UserError where rows or tokens of one of `stages` (default: all) cannot be divided over the mesh."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = config.train.accumulation
    rows = devices * parts
    for i, stage in enumerate(config.stages):
        if stages is not None and stage not in stages:
            continue
        for batch, _ in stage.batches:
            if batch % rows:
                key = "global_batch" if batch == stage.global_batch else "ramp: a batch"
                passes = f" in train.accumulation = {parts} parts" if parts > 1 else ""
                fewer = batch // devices if batch % devices == 0 else 0
                instead = f"a train.accumulation that divides {fewer}" if fewer else "fewer devices"
                raise UserError(
                    f"config key stages.{i}.{key} = {batch} rows cannot be divided over {devices} devices "
                    f"(replica x data x fsdp){passes}: choose a multiple of {rows}, or {instead}."
                )
        if stage.row_length % mesh.shape["context"]:
            raise UserError(
                f"config key stages.{i}.row_length = {stage.row_length} cannot be divided over mesh.context = "
                f"{mesh.shape['context']}: choose a divisor."
            )
