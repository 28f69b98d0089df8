"""What every path of the server does alike: keys, bodies with limits, errors in OpenAI's form, one log line each."""

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from m1jax.errors import first_line
from m1jax.serve.body import Body, parse
from m1jax.serve.errors import RequestError
from m1jax.serve.metrics import Metrics
from m1jax.serve.served import Settings

LOG = logging.getLogger("m1jax.serve")
_GONE = 499
"""Status in logs and metrics of a request whose client went away."""
_SLOW_READER = 30.0
"""Seconds beyond a request's own in which its last event must have been read."""

Handler = Callable[[Request], Awaitable[Response]]


class Door:
    """Makes endpoints of handlers."""

    def __init__(self, settings: Settings, metrics: Metrics):
        """See `Settings`."""
        self._settings, self._metrics = settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]

    def endpoint(self, handler: Handler, path: str, *, open_to_all: bool = False) -> Handler:
        """The handler behind the API key; whatever it raises becomes an answer without a traceback."""

        async def endpoint(request: Request) -> Response:
            begun, name = time.monotonic(), secrets.token_hex(8)
            try:
                self._check_host(request)
                if not open_to_all:
                    self._check_key(request)
                response = await handler(request)
            except RequestError as error:
                response = refusal(error)
            except ClientDisconnect:
                response = Response(status_code=_GONE)
            except Exception as error:  # noqa: BLE001 (the outermost function of a request)
                LOG.error("%s: %s: %s", path, type(error).__name__, _where(error))
                response = refusal(RequestError(500, "the server failed to answer this request."))
            response.headers["X-Request-Id"] = name
            seconds = time.monotonic() - begun
            self._metrics.answered.labels(path, response.status_code).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            LOG.info("%s %s %s %.3f s %s", request.method, path, response.status_code, seconds, name)
            return response

        return endpoint

    def _check_host(self, request: Request) -> None:
        if self._settings.hosts and request.url.hostname not in self._settings.hosts:
            raise RequestError(403, f"this server is called {' or '.join(self._settings.hosts)}, not by this name.")

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        fits = [hmac.compare_digest(given.strip().encode(errors="replace"), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise RequestError(
                401, "the API key is missing or wrong: send it as Authorization: Bearer KEY.", code="invalid_api_key"
            )

    async def body(self, request: Request) -> Body:
        """The JSON object of a request; raises RequestError where it is none, too long, or does not come."""
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of another site cannot send this without being asked
            raise RequestError(415, "the Content-Type must be application/json.")
        most, parts, size = self._settings.max_body, [], 0
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RequestError(413, f"the body has more than {most} bytes: send less at once.")
                    parts.append(part)
        except TimeoutError as error:
            raise RequestError(408, f"the body did not come within {self._settings.body_timeout:g} seconds.") from error
        return await run_in_threadpool(parse, b"".join(parts))


def refusal(error: RequestError) -> Response:
    """An error as an answer."""
    return JSONResponse(error.body, error.status, error.headers)


async def while_there(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; it is cancelled, and ClientDisconnect raised, where the client goes away before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


class EventStream(StreamingResponse):
    """Server-sent events; `ended` is called once nobody reads any more, or the reader is too slow."""

    def __init__(self, events: Any, ended: Callable[[], None], seconds: float):
        """`seconds` are those that the answer may take."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ended, self._seconds = ended, seconds + _SLOW_READER

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See StreamingResponse."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            LOG.warning("a reader of an answer was too slow: its connection is closed")
        finally:
            self._ended()


def _where(error: BaseException) -> str:
    """Where in the code an error came from, and its first line, for the log."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: "
    return place + first_line(error)
