"""Joining the processes of one run: given by hand, or found where a TPU pod, Slurm or Open MPI started them."""

import dataclasses
import os
import sys
import threading

import jax

from m1jax.errors import AGAIN, UserError, first_line

HEARTBEAT_SECONDS = 40
"""How long jax's own service waits for a silent process: under a minute, above what train/run/liveness.py waits."""
_SHUTDOWN_SECONDS = 30
JOIN_SECONDS = 300
"""How long the processes of a run wait for each other when it starts."""
# What clusters that jax recognises set in the environment of a task: the number of tasks, or of slices.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")


@dataclasses.dataclass(frozen=True)
class Processes:
    """How a process joins its run: the coordinator's HOST:PORT, the number of processes, and which one this is."""

    coordinator: str
    count: int
    index: int


def start(given: Processes | None = None) -> None:
    """Joins the run's processes, before anything else touches a device; does nothing for a single process.

    Without `given`, jax's own detection finds the others on a TPU pod (Compute Engine, GKE), under Slurm and under
    Open MPI. Raises UserError where what was given cannot be right. If the others do not join in time (after a
    restart one may be late), the process ends with exit status AGAIN.
    """
    if jax.distributed.is_initialized():
        return
    if given is None and not _on_a_cluster():
        return
    if given is not None and not 0 <= given.index < given.count:
        raise UserError(f"--process {given.index} must be from 0 to {given.count - 1}: processes are counted from 0.")
    # jax's own client aborts the process when its time is over, so ours is over first.
    late = threading.Timer(JOIN_SECONDS, _leave, [given])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator_address=given.coordinator if given else None,
            num_processes=given.count if given else None,
            process_id=given.index if given else None,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=2 * JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = f"the coordinator at {given.coordinator}" if given else "the coordinator that jax found"
        raise UserError(
            f"process could not join {where} ({first_line(error)}): start all processes, and give the same "
            f"--coordinator to each."
        ) from error
    finally:
        late.cancel()


def _leave(given: Processes | None) -> None:
    who = f"process {given.index}" if given else "this process"
    where = f" at {given.coordinator}" if given else ""
    print(  # noqa: T201
        f"m1: {who} waited {JOIN_SECONDS} s{where}, but not all processes of the run came: start them again.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(AGAIN)


def _on_a_cluster() -> bool:
    """Whether the machine and the environment say that this process is one of several."""
    if any(int(os.environ.get(name) or 1) > 1 for name in _COUNTS):
        return True
    # Importing jax sets TPU_SKIP_MDS_QUERY where the machine has no TPU.
    if os.environ.get("JAX_PLATFORMS") == "cpu" or os.environ.get("TPU_SKIP_MDS_QUERY"):
        return False
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")  # GKE sets it; a VM of Compute Engine asks its metadata server
    return hosts is None or "," in hosts
