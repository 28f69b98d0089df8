"""A folder of packed rows, on a disk or in a bucket: its manifest and the stores of its rows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.rows import manifest as manifests
from m1jax.rows.manifest import Manifest, row_path
from m1jax.rows.ranges import RangeRows, reading_threads
from m1jax.rows.storage import Storage, is_remote
from m1jax.rows.store import RowStore

Stores = Mapping[tuple[int, str], RowStore | RangeRows]
"""Row stores by row length and source."""


def load_manifest(address: str) -> Manifest:
    """The manifest of finished rows in a folder or at a gs:// or file:// address; raises UserError without any."""
    if not is_remote(address):
        artefact.require(Path(address), "rows", "pack")
        return Manifest.load(Path(address))
    storage = Storage(address)
    try:
        kind = json.loads(storage.read(artefact.STAMP)).get("kind")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{address}/{artefact.STAMP} is damaged ({error}): copy the packed rows there again."
        ) from error
    if kind != "rows":
        raise UserError(f"{address} is of kind {kind!r}, but 'rows' is needed: choose the right folder.")
    return Manifest.parse(storage.read(manifests.FILE), f"{storage.url}/{manifests.FILE}")


def open_stores(address: str, manifest: Manifest, used: Iterable[tuple[int, str]]) -> Stores:
    """Row stores of the (row length, source) pairs; raises UserError for a missing or broken one."""
    if not is_remote(address):
        return manifests.open_stores(Path(address), manifest, used)
    storage, pool = Storage(address), reading_threads()
    stores, checks = {}, []
    for length, source in used:
        name, file = row_path(Path(), length, source).as_posix(), manifest.sources[source].files[length]
        stores[length, source] = RangeRows(storage, name, file.rows, length, pool)
        # All at once: a bucket's answers take their time.
        checks.append(pool.submit(stores[length, source].check, file.bytes))
    for check in checks:
        check.result()
    return stores
