"""The one client of the OpenAI protocol: it asks a chat model at an address, and keeps a log of what was asked.

The log is JSON lines. A request that it holds is never sent again, so that an interrupted run goes on where it was, and
what was paid for once is not paid for twice.
"""

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.errors import UserError, first_line

Message = Mapping[str, str]
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
_TRIES = 6
_LONGEST_PAUSE = 60.0


class Client:
    """Asks `model` behind `address` (such as http://localhost:8000/v1); safe for several threads.

    `key` is the secret that the server wants, or nothing; it is never written anywhere. Raises UserError where the
    address is none, or the log cannot be read.
    """

    def __init__(
        self,
        address: str,
        model: str,
        log: Path,
        *,
        key: str = "",
        timeout: float = 300.0,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        if not address.startswith(("http://", "https://")):
            raise UserError(f"the address {address!r} is none: write one such as http://localhost:8000/v1.")
        self._url = address.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._model = model
        self._key = key
        self._timeout = timeout
        self._pause = pause
        self._lock = threading.Lock()
        self._known = _read(log)
        self._log = log
        self.sent = 0
        """Requests that were sent, without those that the log answered."""

    def ask(self, messages: Sequence[Message], **settings: Any) -> str:
        """The model's answer; `settings` are those of the protocol, such as temperature and max_tokens.

        Raises UserError where the server cannot be reached, refuses, or answers with something else than the protocol.
        """
        request = {"model": self._model, "messages": list(messages), **settings}
        name = _name(request)
        with self._lock:
            if name in self._known:
                return self._known[name]
        started = time.monotonic()
        answer = self._send(request)
        with self._lock:
            self.sent += 1
            self._known[name] = answer
            record = {
                "key": name,
                "request": request,
                "answer": answer,
                "seconds": round(time.monotonic() - started, 3),
            }
            _append(self._log, record)
        return answer

    def _send(self, request: Mapping[str, Any]) -> str:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        body = json.dumps(request, ensure_ascii=False).encode()
        for attempt in range(1, _TRIES + 1):
            wait = min(2.0**attempt, _LONGEST_PAUSE)
            try:
                sent = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
                with urllib.request.urlopen(sent, timeout=self._timeout) as response:
                    return self._answer(response.read())
            except urllib.error.HTTPError as error:
                problem = f"status {error.code} ({_said(error.read())})"
                if error.code not in _BUSY:
                    raise UserError(
                        f"{self._url} refused a request with {problem}: check address, model and key."
                    ) from error
                wait = min(_seconds(error.headers.get("Retry-After")) or wait, _LONGEST_PAUSE)
            except (OSError, http.client.HTTPException) as error:
                problem = first_line(error)
            if attempt < _TRIES:
                self._pause(wait)
        raise UserError(
            f"{self._url} did not answer {_TRIES} times, at last with {problem}: the same command goes on once it does."
        )

    def _answer(self, body: bytes) -> str:
        try:
            answer = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str):
            raise UserError(f"{self._url} answered with something else than the OpenAI protocol ({_said(body)}).")
        return answer


def key_of(variable: str | None) -> str:
    """The secret in an environment variable, "" without a name; raises UserError where the variable is not set."""
    if not variable:
        return ""
    if not os.environ.get(variable):
        raise UserError(f"the environment variable {variable} is not set: set it to the key of the server.")
    return os.environ[variable]


def _name(request: Mapping[str, Any]) -> str:
    canonical = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _read(log: Path) -> dict[str, str]:
    """Answers by request of a log; its last line may be torn, where a process was killed."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    known = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            known[str(record["key"])] = str(record["answer"])
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"{log} is damaged in line {number}: remove that line, or the file.") from error
    return known


def _append(log: Path, record: Mapping[str, Any]) -> None:
    """Adds a line that is on the disk when this returns; what a kill left of a torn line is ended first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                whole = _whole(log)
                file.truncate(whole)
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _whole(log: Path) -> int:
    """Bytes of a log up to the end of its last complete line."""
    return log.read_bytes().rfind(b"\n") + 1


def _said(body: bytes) -> str:
    return first_line(body[:2000].decode(errors="replace") or "no text")


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
