"""All checks of a machine, in the order in which they depend on each other."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from m1jax.config import RunConfig
from m1jax.errors import UserError, first_line
from m1jax.parallel import mesh as meshes
from m1jax.parallel.checkup import attention, devices, storage
from m1jax.parallel.checkup.finding import BROKEN, Finding


def run(config: RunConfig | None, bucket: str) -> list[Finding]:
    """Checks this machine, and with `config` the mesh and kernels of a run on it; a check that raises is broken.

    `bucket` is a folder or a gs:// address; by default the run's folder. Several processes call this together.
    """
    dtype = config.model.compute_dtype if config else "bfloat16"
    findings = [
        *_guarded("versions", devices.versions),
        *_guarded("devices", devices.devices),
        *_guarded("matrix product", lambda: devices.products(dtype)),
    ]
    if config:
        findings += _guarded("mesh", lambda: devices.mesh(config))
        findings += _guarded("collectives", lambda: devices.collectives(meshes.make(config.mesh)))
        findings += _guarded("kernel", lambda: attention.kernel(config))
    findings += _guarded("disk", lambda: [storage.local_disk("disk", Path(tempfile.gettempdir()), storage.SLOW_DISK)])
    target = bucket or (config.folder if config else "")
    if target:
        findings += _guarded("bucket", lambda: [_bucket(target)])
    return [*findings, *_guarded("clock", lambda: storage.clocks(target))]


def _bucket(target: str) -> Finding:
    return storage.bucket(target) if "://" in target else storage.mounted_bucket(Path(target))


def _guarded(name: str, check: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    try:
        return check()
    except UserError as error:
        return [Finding(name, BROKEN, str(error))]
    except Exception as error:  # noqa: BLE001 (any failure of a faulty machine is a finding)
        return [Finding(name, BROKEN, f"{type(error).__name__}: {first_line(error)}")]
