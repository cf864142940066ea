"""The server: guards and routes requests, hands them to the model or to the user's own server, ends in good order."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.handlers
import queue
import signal
import sys

from .connection import Connection
from .gateway import Gateway
from .model import ModelApp
from .settings import BadSettings, Settings, from_environment

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

log = logging.getLogger("airhub.serve")

BAD_SETTINGS = 2
_IDLE_SECONDS = 120.0
_BODY_SECONDS = 60.0
_SWEEP_SECONDS = 5.0
_BACKLOG = 1024


def main() -> int:
    """Serve until SIGTERM and return 0; or 2 for bad settings, 3 when ``load`` failed, or the status of what served."""
    listener = _log_to_stderr()
    try:
        settings = from_environment()
    except BadSettings as exc:
        print(f"airhub: {exc}", file=sys.stderr, flush=True)
        return BAD_SETTINGS
    if uvloop is not None and hasattr(asyncio, "Runner"):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(Server(settings).run())
    else:
        status = asyncio.run(Server(settings).run())
    listener.stop()
    return status


class Server:
    """Listens on the port and keeps the connections; what answers is ``ModelApp``, or ``Gateway`` with a command."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._connections: set[Connection] = set()
        self._status = 0

    async def run(self) -> int:
        """Serve until a signal or until the model ends; return the exit status."""
        loop = asyncio.get_running_loop()
        ending = asyncio.Event()

        def end(status: int) -> None:
            self._status = self._status or status
            ending.set()

        app: ModelApp | Gateway = (Gateway if self._settings.command else ModelApp)(self._settings, end)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        try:
            host, port = self._settings.host, self._settings.port
            server = await loop.create_server(
                lambda: Connection(app, loop, self._connections), host, port, backlog=_BACKLOG
            )
        except OSError as exc:
            log.error("Port %s cannot be listened on: %s", self._settings.port, exc)
            return BAD_SETTINGS
        log.info("Listening on %s:%s", *server.sockets[0].getsockname()[:2])
        sweep = loop.create_task(self._sweep())
        gc.freeze()
        app.start()
        await ending.wait()
        sweep.cancel()
        if not self._status:
            log.info("Ending; what is in work is finished first, at most %g s", self._settings.drain_seconds)
            await self._drain(app)
        server.close()
        await app.stop()
        for connection in list(self._connections):
            connection.transport.close()
        return self._status

    async def _drain(self, app: ModelApp | Gateway) -> None:
        """Answer what has come; new requests get 503 meanwhile, on a listener that stays open."""
        app.drain()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.drain_seconds
        while loop.time() < deadline and not self._status and app.in_work:
            await asyncio.sleep(0.02)
        # The last answers are written by now; give their bytes the time to leave.
        while loop.time() < deadline and any(c.transport.get_write_buffer_size() for c in self._connections):
            await asyncio.sleep(0.02)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _SWEEP_SECONDS
            await asyncio.sleep(_SWEEP_SECONDS)
            now = loop.time()
            if now - due > 1.0:
                # The container was frozen; the clients have not been silent, we have been away.
                for connection in self._connections:
                    connection.last_seen += now - due
            for connection in list(self._connections):
                connection.close_if_stale(now, _IDLE_SECONDS, _BODY_SECONDS)


def _log_to_stderr() -> logging.handlers.QueueListener:
    """Log from a thread of its own: a full pipe behind stderr must not stop the server."""
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(10_000)

    class Handler(logging.handlers.QueueHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            """Drop a line that finds the queue full."""

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("airhub: %(message)s"))
    listener = logging.handlers.QueueListener(lines, handler)
    logger = logging.getLogger("airhub.serve")
    logger.addHandler(Handler(lines))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    listener.start()
    return listener
