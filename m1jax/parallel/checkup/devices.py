"""Checks of versions, devices, matrix products, the mesh and its collectives."""

import contextlib
import importlib.metadata
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from m1jax import __version__, hardware
from m1jax.config import RunConfig
from m1jax.parallel import measure
from m1jax.parallel import mesh as meshes
from m1jax.parallel.checkup.finding import BROKEN, LEFT_OUT, OK, SLOW, Finding

VERSIONS = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore")
MIB = 1 << 20
SLOW_SHARE_OF_PEAK = 0.5
"""A large bf16 product reaches 70 to 95% of the published peak on a sound device."""
SLOW_BESIDE_OTHERS = 0.8


def versions() -> Sequence[Finding]:
    """The versions of what computes, the same on every host."""
    installed = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    told = ", ".join(f"{name} {version}" for name, version in installed.items())
    text = f"m1jax {__version__}, Python {platform.python_version()}, {told}"
    if jax.process_count() > 1:
        own = np.frombuffer(text.encode().ljust(512)[:512], np.uint8)
        others = np.atleast_2d(multihost_utils.process_allgather(own))
        odd = [str(i) for i, other in enumerate(others) if not np.array_equal(other, others[0])]
        if odd:
            advice = f"host(s) {', '.join(odd)} differ from host 0: set them up again"
            return [Finding("versions", BROKEN, text, advice)]
    return [Finding("versions", OK, text)]


def devices() -> Sequence[Finding]:
    """The devices that jax sees, as many on every host."""
    local = jax.local_devices()
    found = f"{len(local)} of {jax.device_count()} {local[0].device_kind} on host {jax.process_index()}"
    uneven = jax.device_count() != len(local) * jax.process_count()
    if local[0].platform == "cpu" and any(Path("/dev").glob("accel*")):
        return [Finding("devices", BROKEN, found, "this host has a TPU that jax does not see: install jax[tpu]")]
    if uneven:
        return [Finding("devices", BROKEN, found, "hosts have different numbers of devices: is one chip missing?")]
    return [Finding("devices", OK, found)]


def products(dtype: str) -> Sequence[Finding]:
    """A large matrix product on every device: its speed and its numbers."""
    local = jax.local_devices()
    size = 8192 if local[0].platform != "cpu" else 512
    measured = [measure.product(device, size, dtype) for device in local]
    rates = [rate for rate, _ in measured]
    middle, worst = statistics.median(rates), min(rates)
    found = f"{middle / 1e12:.3g} TFLOP/s a device ({dtype}, {size} x {size}), slowest {worst / 1e12:.3g}"
    wrong = [str(device.id) for device, (_, right) in zip(local, measured, strict=True) if not right]
    if wrong:
        return [Finding("matrix product", BROKEN, found, f"device(s) {', '.join(wrong)} gave wrong numbers: replace")]
    chip = hardware.by_kind(local[0].device_kind)
    peak = chip.flops_per_device if chip and dtype == "bfloat16" else None
    if peak and worst < SLOW_SHARE_OF_PEAK * peak:
        return [Finding("matrix product", SLOW, found, f"the published peak is {peak / 1e12:.0f} TFLOP/s")]
    # Virtual CPU devices share cores: what one of them gets says nothing of the machine.
    if local[0].platform != "cpu" and worst < SLOW_BESIDE_OTHERS * middle:
        device = local[rates.index(worst)].id
        return [Finding("matrix product", SLOW, found, f"device {device} is slower than the others")]
    return [Finding("matrix product", OK, found)]


def mesh(config: RunConfig) -> Sequence[Finding]:
    """The run's mesh over these devices, and its batches over the mesh."""
    mesh = meshes.make(config.mesh)
    meshes.check_batches(config, mesh)
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    return [Finding("mesh", OK, sizes)]


def collectives(mesh: Mesh) -> Sequence[Finding]:
    """An all-reduce along every mesh axis: its speed and its numbers."""
    findings = []
    for axis, size in mesh.shape.items():
        if size == 1:
            continue
        amount = 64 * MIB if mesh.devices.flat[0].platform != "cpu" else MIB
        rate, right = measure.collective(mesh, axis, amount)
        found = f"{rate / 1e9:.3g} GB/s a device, all-reduce of {amount // MIB} MiB over {size}"
        state, advice = (OK, "") if right else (BROKEN, "the sum is wrong: a link or a device is broken")
        findings.append(Finding(f"collective: {axis}", state, found, advice))
    return findings or [Finding("collectives", LEFT_OUT, "every mesh axis has one device")]
