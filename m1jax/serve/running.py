"""The server as a process: a socket, signals, and an end that lets answers finish."""

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from m1jax.errors import UserError


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound; raises UserError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen at {host} port {port} ({reason}): give another --host or --port.") from error
    return bound


def run(app: Starlette, bound: socket.socket, drain: float, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT; requests that run then have `drain` seconds to end. A second signal ends all."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http="h11",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=max(1, int(drain)),
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = _Server(config, ready)
    # uvicorn sends itself the signal again when it has ended: the process has ended in order by then.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn: when it returns, requests are answered."""
        await super().startup(sockets)
        if self.started:
            self._ready()
