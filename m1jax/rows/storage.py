"""Files of a bucket (gs://…) or of a mounted one (file:///…), read by ranges through tensorstore, as Orbax does.

Every read returns bytes, or fails within DEADLINE with one sentence. tensorstore itself retries when a service is busy
(429, 5xx) or a connection breaks. TENSORSTORE_GCS_HTTP_URL names another server than Google's.
"""

from typing import Any

import tensorstore

from m1jax.errors import UserError, first_line

DEADLINE = 25.0
"""Seconds after which a read fails, retries included."""
CONCURRENT = 64
"""Reads that one store has under way at once."""
# Retries end after about 10 s, before the deadline, so that the message can name the service's own error.
_CONTEXT: dict[str, Any] = {
    "gcs_request_retries": {"max_retries": 8, "initial_delay": "100ms", "max_delay": "2s"},
    "gcs_request_concurrency": {"limit": CONCURRENT},
    "file_io_concurrency": {"limit": CONCURRENT},
}
_TOO_MANY = (
    "the service keeps refusing because of too many requests (429): start fewer hosts at once, or ask for a higher "
    "quota, then run the same command again"
)
_REASONS = {
    "PERMISSION_DENIED": "access was denied: give this machine's account the right to read the bucket "
    "(roles/storage.objectViewer), or log in with `gcloud auth application-default login`",
    "ABORTED": "the service kept failing: check the network and the service's state, then run the same command again",
    "OUT_OF_RANGE": "it is cut short: copy the packed rows into the bucket again",
}


def is_remote(folder: str) -> bool:
    """Whether a folder of a config is read through this module: gs://bucket/path, or file:///path of a mounted one."""
    return folder.startswith(("gs://", "file://"))


class Storage:
    """Read access to the objects below one address; threads may share it."""

    def __init__(self, url: str, deadline: float = DEADLINE) -> None:
        """Raises UserError where `url` is not the address of a bucket."""
        self.url = url.rstrip("/")
        self._deadline = deadline
        try:
            context = tensorstore.Context(_CONTEXT)
            self._store = tensorstore.KvStore.open(self.url + "/", context=context).result(timeout=deadline)
        except (ValueError, TimeoutError) as error:
            raise UserError(f"{url} cannot be opened ({first_line(error, 300)}): write gs://BUCKET/FOLDER.") from error

    def read(self, name: str, first: int | None = None, last: int | None = None) -> bytes:
        """Bytes `first` to `last`, that one excluded, of an object; by default all of it.

        Raises UserError, within the deadline, where it is missing, shorter, refused or silent.
        """
        where = f"{self.url}/{name}"
        try:
            found = self._store.read(name, byte_range=slice(first, last)).result(timeout=self._deadline)
        except TimeoutError as error:
            raise UserError(
                f"{where} did not answer within {self._deadline:.0f} s: check the network between this machine and the "
                f"bucket, then run the same command again."
            ) from error
        except ValueError as error:
            line = first_line(error, 300)
            reason = _TOO_MANY if "'429'" in line else _REASONS.get(line.partition(":")[0], line)
            raise UserError(f"{where} cannot be read: {reason}.") from error
        if found.state != "value":
            raise UserError(f"{where} is missing: run `m1 pack` and copy its folder there, or give the right address.")
        return found.value
