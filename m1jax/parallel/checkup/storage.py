"""Checks of disks, buckets and clocks."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tensorstore
from jax.experimental import multihost_utils

from m1jax import disk
from m1jax.errors import first_line
from m1jax.parallel.checkup.finding import BROKEN, LEFT_OUT, OK, SLOW, Finding

MIB = 1 << 20
SLOW_DISK = 100 * MIB
"""Bytes written a second."""
SLOW_BUCKET_SECONDS = 2.0
SLOW_SKEW, BROKEN_SKEW = 1.0, 60.0
"""Seconds between clocks: above the first, log lines are out of order; above the second, the cloud refuses tokens."""


def local_disk(name: str, folder: Path, slow: float) -> Finding:
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
    return Finding(name, SLOW if rate < slow else OK, found, "checkpoints will take long" if rate < slow else "")


def mounted_bucket(folder: Path) -> Finding:
    """`local_disk` in a bucket that is mounted as a folder."""
    try:
        return local_disk("bucket", folder, SLOW_DISK / 4)
    except OSError as error:
        advice = "a mounted bucket needs a hierarchical namespace to rename folders (launch/project.sh makes one so)"
        return Finding("bucket", BROKEN, f"{folder}: {error.strerror}", advice)


def bucket(address: str) -> Finding:
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
    return Finding("bucket", SLOW if took > SLOW_BUCKET_SECONDS else OK, f"4 MiB written and read in {took:.2f} s")


def clocks(target: str) -> Sequence[Finding]:
    """Differences between the hosts' clocks, and between this one's and that of the folder's server."""
    findings = []
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("m1 doctor: clocks")
        now = time.time()
        # Whole milliseconds of a day: float64 does not survive the gathering, which goes through float32.
        own = np.array([int(now) % 86400, int(now * 1000) % 1000], np.int32)
        gathered = np.atleast_2d(multihost_utils.process_allgather(own)).astype(np.float64)
        moments = gathered[:, 0] + gathered[:, 1] / 1000
        spread = float(moments.max() - moments.min())
        findings.append(clock_skew("clock: hosts", min(spread, 86400 - spread), f"between {jax.process_count()} hosts"))
    folder = Path(target)
    if target and "://" not in target and folder.is_dir():
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".m1-doctor-") as file:
            file.write(b"clock")
            file.flush()
            os.fsync(file.fileno())
            skew = abs(time.time() - Path(file.name).stat().st_mtime)
        findings.append(clock_skew("clock: folder", skew, f"between this host and {folder}"))
    return findings or [Finding("clock", LEFT_OUT, "one host, no folder to compare with")]


def clock_skew(name: str, seconds: float, where: str) -> Finding:
    """The finding about a difference of two clocks."""
    state = BROKEN if seconds > BROKEN_SKEW else SLOW if seconds > SLOW_SKEW else OK
    advice = "" if state == OK else "start the time service (chrony or systemd-timesyncd)"
    return Finding(name, state, f"{seconds:.3f} s {where}", advice)
