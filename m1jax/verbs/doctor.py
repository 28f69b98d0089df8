"""`m1 doctor`: what is slow or broken on this machine, before a night is lost."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.table import Table

from m1jax import __version__, disk, hardware, kernels
from m1jax.config import RunConfig
from m1jax.errors import UserError, first_line
from m1jax.parallel import jax_setup, measure, processes
from m1jax.parallel import mesh as meshes
from m1jax.parallel.processes import Processes
from m1jax.show import console as consoles
from m1jax.verbs.arguments import CONFIG, Parser, add_json, add_processes, config_of, example, processes_of

VERSIONS = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore")
MIB = 1 << 20
SLOW_SHARE_OF_PEAK = 0.5
"""A large bf16 product reaches 70 to 95% of the published peak on a sound device."""
SLOW_BESIDE_OTHERS = 0.8
SLOW_DISK = 100 * MIB
SLOW_BUCKET_SECONDS = 2.0
SLOW_SKEW, BROKEN_SKEW = 1.0, 60.0
"""Seconds between clocks: logs no longer order what happened; tokens of the cloud are refused."""
KERNEL_TOLERANCE = {"float32": 2e-3, "bfloat16": 4e-2}
"""Largest difference from the reference, by the largest output: a TPU's float32 products are bf16 in three passes."""
BROKEN = "broken"
_COLOURS = {"ok": "green", "slow": "yellow", BROKEN: "bold red", "left out": "dim"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    state: str
    """ok, slow, broken or left out."""
    found: str
    advice: str = ""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 doctor {CONFIG} --bucket gs://my-bucket/run")
    parser.add_argument("--config", metavar="FILE", help="also check the mesh and the kernels of this run")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as for m1 train"
    )
    parser.add_argument("--bucket", default="", metavar="DIR", help="folder or gs:// to write to (default: the run's)")
    add_json(parser, "a table")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    given = processes_of(args)
    if args.overrides and not args.config:
        raise UserError("--set changes a config: give --config too.")
    return diagnose(config_of(args) if args.config else None, bucket=args.bucket, as_json=args.json, given=given)


def diagnose(
    config: RunConfig | None, *, bucket: str = "", as_json: bool = False, given: Processes | None = None
) -> int:
    """Checks this machine, and with `config` the mesh and kernels of a run on it; the exit status, 1 if any is broken.

    Several processes check together, each its own devices and disk, all of them the mesh and the clocks. `bucket` is a
    folder (mounted, say) or gs:// address to write to; by default the run's folder.
    """
    jax_setup.prepare()
    processes.start(given)
    findings = [finding for check in _checks(config, bucket) for finding in check()]
    if as_json:
        print(json.dumps({"host": jax.process_index(), "findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        consoles.make().print(_table(findings))
    return int(any(finding.state == BROKEN for finding in findings))


def _checks(config: RunConfig | None, bucket: str) -> Iterator[Callable[[], Sequence[Finding]]]:
    """Every check, in the order of what depends on what; one that raises is itself a finding."""
    dtype = config.model.compute_dtype if config else "bfloat16"
    yield _guarded("versions", _versions)
    yield _guarded("devices", _devices)
    yield _guarded("matrix product", lambda: _products(dtype))
    if config:
        yield _guarded("mesh", lambda: _mesh(config))
        yield _guarded("collectives", lambda: _collectives(meshes.make(config.mesh)))
        yield _guarded("kernel", lambda: _kernel(config))
    yield _guarded("disk", lambda: [_folder("disk", Path(tempfile.gettempdir()), SLOW_DISK)])
    target = bucket or (config.folder if config else "")
    if target:
        yield _guarded("bucket", lambda: [_address(target) if "://" in target else _mounted(Path(target))])
    yield _guarded("clock", lambda: _clocks(target))


def _guarded(name: str, check: Callable[[], Sequence[Finding]]) -> Callable[[], Sequence[Finding]]:
    def call() -> Sequence[Finding]:
        try:
            return check()
        except UserError as error:
            return [Finding(name, BROKEN, str(error))]
        except Exception as error:  # noqa: BLE001 (whatever fails on a sick machine is what is looked for)
            return [Finding(name, BROKEN, f"{type(error).__name__}: {first_line(error)}")]

    return call


def _versions() -> Sequence[Finding]:
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
    return [Finding("versions", "ok", text)]


def _devices() -> Sequence[Finding]:
    local = jax.local_devices()
    found = f"{len(local)} of {jax.device_count()} {local[0].device_kind} on host {jax.process_index()}"
    uneven = jax.device_count() != len(local) * jax.process_count()
    if local[0].platform == "cpu" and any(Path("/dev").glob("accel*")):
        return [Finding("devices", BROKEN, found, "this host has a TPU that jax does not see: install jax[tpu]")]
    if uneven:
        return [Finding("devices", BROKEN, found, "hosts have different numbers of devices: is one chip missing?")]
    return [Finding("devices", "ok", found)]


def _products(dtype: str) -> Sequence[Finding]:
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
        return [Finding("matrix product", "slow", found, f"the published peak is {peak / 1e12:.0f} TFLOP/s")]
    # Virtual CPU devices share cores: what one of them gets says nothing of the machine.
    if local[0].platform != "cpu" and worst < SLOW_BESIDE_OTHERS * middle:
        device = local[rates.index(worst)].id
        return [Finding("matrix product", "slow", found, f"device {device} is slower than the others")]
    return [Finding("matrix product", "ok", found)]


def _mesh(config: RunConfig) -> Sequence[Finding]:
    mesh = meshes.make(config.mesh)
    meshes.check_batches(config, mesh)
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    return [Finding("mesh", "ok", sizes)]


def _collectives(mesh: Mesh) -> Sequence[Finding]:
    findings = []
    for axis, size in mesh.shape.items():
        if size == 1:
            continue
        amount = 64 * MIB if mesh.devices.flat[0].platform != "cpu" else MIB
        rate, right = measure.collective(mesh, axis, amount)
        found = f"{rate / 1e9:.3g} GB/s a device, all-reduce of {amount // MIB} MiB over {size}"
        state, advice = ("ok", "") if right else (BROKEN, "the sum is wrong: a link or a device is broken")
        findings.append(Finding(f"collective: {axis}", state, found, advice))
    return findings or [Finding("collectives", "left out", "every mesh axis has one device")]


def _kernel(config: RunConfig) -> Sequence[Finding]:
    """The configured attention on this device against the reference on the host's CPU, for each layer kind."""
    name, dtype = config.model.attention, config.model.compute_dtype
    better = [each for each, platform in kernels.PLATFORMS.items() if platform == jax.default_backend()]
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return [Finding("kernel", "left out", "jax has no CPU to compute the reference on: unset JAX_PLATFORMS")]
    findings = []
    for kind in dict.fromkeys(config.model.pattern):
        _, _, head_dim = config.model.heads(kind)
        with jax.default_device(host):
            arguments = _attention_case(head_dim)
            window = 100 if kind == "window" else None
            expected = np.asarray(kernels.attention(**arguments, window=window, scale=head_dim**-0.5))
        place = jax.local_devices()[0]
        moved = {key: jax.device_put(_cast(value, dtype), place) for key, value in arguments.items()}

        @jax.jit
        def attend(moved: dict[str, Any], window: int | None = window, dim: int = head_dim) -> jax.Array:
            return kernels.attention(**moved, window=window, scale=dim**-0.5, impl=name)

        found = np.asarray(attend(moved)).astype(np.float32)
        error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
        told = f"{name}, {dtype}, head_dim {head_dim}: differs by {error:.1e} of the largest output"
        right = bool(np.isfinite(found).all()) and error <= KERNEL_TOLERANCE[dtype]
        if not right:
            advice = "the kernel is wrong on this device: set model.attention to reference, and report it"
            findings.append(Finding(f"kernel: {kind}", BROKEN, told, advice))
        elif better and name not in better:
            findings.append(Finding(f"kernel: {kind}", "slow", told, f"set model.attention to {' or '.join(better)}"))
        else:
            findings.append(Finding(f"kernel: {kind}", "ok", told))
    return findings


def _attention_case(head_dim: int) -> dict[str, Any]:
    """Arguments of `kernels.attention`: two rows of three documents and padding, four query heads on two."""
    rng = np.random.default_rng(0)
    rows, length, heads, kv_heads = 2, 256, 4, 2
    segments = np.repeat([1, 2, 3, 0], [100, 37, 103, 16])[None].repeat(rows, 0)
    starts = np.array([0, 0, 100, 137])[segments]
    case = {
        "q": rng.standard_normal((rows, length, heads, head_dim)),
        "k": rng.standard_normal((rows, length, kv_heads, head_dim)),
        "v": rng.standard_normal((rows, length, kv_heads, head_dim)),
        "conv_k": rng.standard_normal((kv_heads, 2)),
        "conv_v": rng.standard_normal((kv_heads, 2)),
        "inv_freq": 1e4 ** (-np.arange(head_dim // 2) * 2 / head_dim),
    }
    floats = {name: jnp.asarray(value, jnp.float32) for name, value in case.items()}
    positions = np.where(segments > 0, np.arange(length) - starts, 0)
    return {**floats, "positions": jnp.asarray(positions, jnp.int32), "segment_ids": jnp.asarray(segments, jnp.int32)}


def _cast(value: jax.Array, dtype: str) -> jax.Array:
    return value.astype(dtype) if value.ndim == 4 else value


def _folder(name: str, folder: Path, slow: float) -> Finding:
    """Writes, reads back and renames in a folder: what a checkpoint does. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f".m1-doctor-{uuid.uuid4().hex[:8]}"
    data = np.random.default_rng(0).bytes(32 * MIB)
    try:
        place.mkdir()
        start = time.perf_counter()
        with open(place / "data", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rate = len(data) / (time.perf_counter() - start)
        moved = place.rename(place.with_name(f"{place.name}-moved"))
        same = (moved / "data").read_bytes() == data
    finally:
        for left in folder.glob(f"{place.name}*"):
            shutil.rmtree(left, ignore_errors=True)
    free = disk.free(folder)
    found = f"{rate / MIB:,.0f} MiB/s written to {folder}, {free / (1 << 30):,.0f} GiB free"
    if not same:
        return Finding(name, BROKEN, found, "what was read is not what was written")
    return Finding(name, "slow" if rate < slow else "ok", found, "checkpoints will take long" if rate < slow else "")


def _mounted(folder: Path) -> Finding:
    try:
        return _folder("bucket", folder, SLOW_DISK / 4)
    except OSError as error:
        advice = "a mounted bucket needs a hierarchical namespace to rename folders (launch/project.sh makes one so)"
        return Finding("bucket", BROKEN, f"{folder}: {error.strerror}", advice)


def _address(address: str) -> Finding:
    """Writes an object below gs://…, reads and deletes it."""
    key, data = f"m1-doctor-{uuid.uuid4().hex[:8]}", np.random.default_rng(0).bytes(4 * MIB)
    start = time.perf_counter()
    try:
        store = tensorstore.KvStore.open(address.rstrip("/") + "/").result(timeout=25)
        store.write(key, data).result(timeout=25)
        same = store.read(key).result(timeout=25).value == data
        store.delete_range(tensorstore.KvStore.KeyRange(key, f"{key}\0")).result(timeout=25)
    except (ValueError, TimeoutError) as error:
        reason = first_line(error) if str(error) else "no answer"
        advice = "give this machine's account roles/storage.objectUser on the bucket"
        return Finding("bucket", BROKEN, f"{address}: {reason}", advice)
    took = time.perf_counter() - start
    if not same:
        return Finding("bucket", BROKEN, address, "what was read is not what was written")
    return Finding("bucket", "slow" if took > SLOW_BUCKET_SECONDS else "ok", f"4 MiB written and read in {took:.2f} s")


def _clocks(target: str) -> Sequence[Finding]:
    """How far the hosts' clocks differ, and, where a folder is mounted, this one's and that of its server."""
    findings = []
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("m1 doctor: clocks")
        now = time.time()
        # Whole milliseconds of a day: float64 does not survive the gathering, which goes through float32.
        own = np.array([int(now) % 86400, int(now * 1000) % 1000], np.int32)
        gathered = np.atleast_2d(multihost_utils.process_allgather(own)).astype(np.float64)
        moments = gathered[:, 0] + gathered[:, 1] / 1000
        spread = float(moments.max() - moments.min())
        findings.append(_skew("clock: hosts", min(spread, 86400 - spread), f"between {jax.process_count()} hosts"))
    folder = Path(target)
    if target and "://" not in target and folder.is_dir():
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".m1-doctor-") as file:
            file.write(b"clock")
            file.flush()
            os.fsync(file.fileno())
            skew = abs(time.time() - Path(file.name).stat().st_mtime)
        findings.append(_skew("clock: folder", skew, f"between this host and {folder}"))
    return findings or [Finding("clock", "left out", "one host, no folder to compare with")]


def _skew(name: str, seconds: float, where: str) -> Finding:
    state = BROKEN if seconds > BROKEN_SKEW else "slow" if seconds > SLOW_SKEW else "ok"
    advice = "" if state == "ok" else "start the time service (chrony or systemd-timesyncd)"
    return Finding(name, state, f"{seconds:.3f} s {where}", advice)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(title=f"m1 doctor, host {jax.process_index()} of {jax.process_count()}")
    table.add_column("check")
    table.add_column("")
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        state = f"[{_COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(finding.check, state, finding.found, finding.advice)
    return table
