"""What a step reports: a line of JSON, TensorBoard events, and the memory that the devices used."""

import fcntl
import json
import socket
import time
from pathlib import Path
from typing import IO, Any

import jax
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from m1jax.errors import UserError
from m1jax.train.hooks.hook import Hook
from m1jax.train.report import StepReport
from m1jax.train.run import records


def hbm_bytes() -> int | None:
    """Most memory that has been in use on any device of this process; None where devices do not count it (CPUs)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return max((found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found), default=None)


TIMING = ("time", "seconds", "tokens_per_second", "mfu", "data_wait", "hbm_bytes", "seconds_left")
"""Keys of a metrics line that differ between two runs of the same steps."""


class Journal(Hook):
    """The record of a run: metrics.jsonl, a line a step, and TensorBoard events, a run of TensorBoard's a stage.

    When a run continues, lines of later steps, which a killed run wrote after its last checkpoint, are removed, and
    TensorBoard drops them too. The file is locked and never replaced, so that two processes cannot both write it.
    """

    def __init__(self, folder: Path):
        """Nothing is written before `begin`."""
        self.path = folder / "metrics.jsonl"
        self._folder = folder
        self._events = folder / "tensorboard"
        self._first = 0
        self._file: IO[bytes] | None = None
        self._stages: dict[str, RecordWriter] = {}

    def begin(self, step: int) -> None:
        """Opens the record after `step` steps. Raises UserError where another process writes it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 (closed by end())
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                f"{self.path} is being written by another process: let that one end, or train in another folder."
            ) from error
        except OSError:  # a file system without locks: the lease on the run's folder still holds
            pass
        self._file.truncate(_length(self._file, step))
        self._first = step
        # Also in stages that this run may not reach again: TensorBoard drops what a killed run wrote there.
        for stage in self._events.glob("*/"):
            self._of(stage.name)

    def report(self, report: StepReport) -> None:
        """Records a step: its numbers go to TensorBoard too."""
        assert self._file is not None, "a report before begin()"
        now, values = time.time(), report.flat()
        line = json.dumps({"step": report.step, "stage": report.stage, "time": now, **values}) + "\n"
        self._file.write(line.encode())
        numbers = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, float | int)
        ]
        _event(self._of(report.stage), Event(step=report.step, wall_time=now, summary=Summary(value=numbers)))

    def end(self) -> None:
        """Writes out what is buffered."""
        if self._file is not None:
            self._file.close()
        for events in self._stages.values():
            events.close()

    def _of(self, stage: str) -> RecordWriter:
        if stage not in self._stages:
            # tensorboard's own file writer would import TensorFlow where it is installed; its record writer does not.
            path = self._events / stage / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            records = self._stages[stage] = RecordWriter(open(path, "wb"))  # noqa: SIM115 (closed by end())
            now = time.time()
            _event(records, Event(wall_time=now, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            _event(records, Event(wall_time=now, step=self._first + 1, session_log=start))
        return self._stages[stage]


def _event(records: RecordWriter, event: Event) -> None:
    records.write(event.SerializeToString())
    records.flush()


def _length(file: IO[bytes], step: int) -> int:
    """Bytes of a metrics.jsonl up to the first line of a step after `step`, or up to a last line without its end."""
    file.seek(0)
    length = 0
    for line in file.read().splitlines(keepends=True):
        record = records.parsed(line)
        if not line.endswith(b"\n") or (record is not None and record["step"] > step):
            break
        length += len(line)
    return length


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a line that a killed run left unfinished is ignored."""
    return records.read(path)
