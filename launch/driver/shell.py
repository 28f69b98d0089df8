"""Runs other programs: with a time limit, again where the service was merely busy, or only printed (--dry-run)."""

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from driver.settings import CloudError, LaunchError

TRANSIENT = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|INTERNAL\b|HttpError 5\d\d|\b(429|502|503|504)\b|timed? ?out"
    r"|[Cc]onnection (reset|refused|aborted)|Temporary failure in name resolution",
)
ATTEMPTS = 5
LIMIT = float(os.environ.get("M1_CALL_SECONDS", "300"))
"""Seconds that a call which only asks or orders may take."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a program answered; status 124 where it did not end in time."""

    status: int
    out: str = ""
    err: str = ""

    @property
    def missing(self) -> bool:
        """Whether the service said that there is no such thing; silence or any other error does not count."""
        return self.status != 0 and bool(re.search(r"NOT_FOUND|was not found|404|matched no objects", self.err))

    @property
    def reason(self) -> str:
        """The last line that says what went wrong."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("ERROR:")] or lines
        return (told[-1] if told else f"exit status {self.status}").removeprefix("ERROR: ").rstrip(".")


OK = Result(0)
MISSING = Result(1, err="NOT_FOUND")


class Shell:
    """The one door to gcloud, xpk, git and m1."""

    def __init__(self, dry_run: bool) -> None:
        """With `dry_run` every command is printed instead, and answered as its caller assumes."""
        self.dry_run = dry_run
        self.pause = float(os.environ.get("M1_RETRY_SECONDS", "5"))

    def say(self, text: str) -> None:
        """One line for the operator; in a dry run a comment, so that the output can be read as a script."""
        with contextlib.suppress(OSError):  # a terminal that is gone ends nothing
            print(f"# {text}" if self.dry_run else text, flush=True)

    def sleep(self, seconds: float) -> None:
        """Waits, except in a dry run."""
        if not self.dry_run:
            time.sleep(seconds)

    def look(self, command: Sequence[str]) -> Result:
        """Runs a program of this machine that changes nothing; also in a dry run."""
        return self._once(command, LIMIT)

    def local(self, command: Sequence[str], assume: Result = OK, env: Mapping[str, str] | None = None) -> Result:
        """Runs a program of this machine, which has no service to be busy, for as long as it needs."""
        return assume if self._printed(command) else self._once(command, None, env)

    def ask(self, command: Sequence[str], *, assume: Result = OK, limit: float = LIMIT, again: bool = True) -> Result:
        """Runs a command of a cloud; repeats it where the service was busy or silent, unless `again` is False."""
        if self._printed(command):
            return assume
        for attempt in range(ATTEMPTS):
            result = self._once(command, limit)
            busy = result.status == 124 or (result.status != 0 and not result.missing and TRANSIENT.search(result.err))
            if not busy or not again:
                return result
            if attempt + 1 < ATTEMPTS:
                self.say(f"{' '.join(command[:5])} … did not go through ({result.reason}): again.")
                self.sleep(self.pause * 2**attempt)
        return result

    def must(self, command: Sequence[str], what: str, *, assume: Result = OK, limit: float = LIMIT) -> Result:
        """`ask`, and CloudError saying `what` failed where the status is not 0."""
        result = self.ask(command, assume=assume, limit=limit)
        if result.status:
            raise CloudError(f"{what} failed: {result.reason}.")
        return result

    def _printed(self, command: Sequence[str]) -> bool:
        if self.dry_run:
            print(" \\\n    ".join(_lines(command)), flush=True)
        return self.dry_run

    def _once(self, command: Sequence[str], limit: float | None, env: Mapping[str, str] | None = None) -> Result:
        # A session of its own, so that a time limit ends the ssh processes below gcloud as well, and Ctrl-C reaches
        # this program alone, which then removes what it created.
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, **env} if env else None,
            )
        except FileNotFoundError as error:
            raise LaunchError(f"{command[0]} is not on this machine: install it, or use --dry-run.") from error
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            _kill(process)
            out, err = process.communicate()
            return Result(124, out, f"{err}\nno answer within {limit:g} s (timed out)")
        except BaseException:
            _kill(process)
            raise
        return Result(process.returncode, out, err)


def _kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(command: Sequence[str]) -> list[str]:
    """A command for reading: the words before the first flag on one line, then a flag a line."""
    words = [_quoted(word) for word in command]
    if command[0] not in ("gcloud", "xpk"):
        return [" ".join(words)]
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return [" ".join(words[:first]), *words[first:]]


def _quoted(word: str) -> str:
    """A word for a shell; of --flag=value the value alone is quoted, as people write it."""
    flag, equals, value = word.partition("=")
    return f"{flag}={shlex.quote(value)}" if word.startswith("--") and equals else shlex.quote(word)
