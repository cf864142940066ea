"""The application before a server of the user's own: starts it, guards it, and hands HTTP and websockets on to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable

from .connection import Request, Sink
from .faults import model_error, unavailable
from .routes import Base
from .settings import Settings, environment_of_model
from .upstream import Exchange, Upstream

log = logging.getLogger("airhub.serve")

NOT_FOUND = 127
_LOOK_SECONDS = 0.05
_REUSE_SECONDS = 1.0
_KEPT = 64
_AT_ONCE = 100
_KILL_SECONDS = 5.0


class Gateway(Base):
    """Runs ``AIRHUB_SERVE_COMMAND`` as a child and ends with it; at most ``concurrency + queue`` requests are open."""

    def __init__(self, settings: Settings, end: Callable[[int], None]):
        super().__init__(settings, end)
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._early: deque[Exchange] = deque()
        self._kept: deque[tuple[float, Upstream]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._limit = (settings.concurrency or _AT_ONCE) + settings.queue
        self.tunnels: set[Upstream] = set()

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def in_flight(self) -> int:
        return self._open + len(self.tunnels)

    @property
    def queued(self) -> int:
        return len(self._early)

    def start(self) -> None:
        """Start the user's server; it counts as ready once its port answers."""
        settings = self.settings
        environment = {**environment_of_model(), "PORT": str(settings.upstream_port)}
        folder = settings.code if os.path.isdir(settings.code) else None
        try:
            self._child = subprocess.Popen(
                settings.command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment, cwd=folder
            )
        except OSError as exc:
            log.error("The command %r cannot be started: %s", settings.command[0], exc)
            self._end(NOT_FOUND)
            return
        self._tasks = [self._loop.create_task(self._await_port()), self._loop.create_task(self._await_end(self._child))]

    async def stop(self) -> None:
        """End the user's server, with SIGTERM first."""
        for task in self._tasks:
            task.cancel()
        for upstream in (*self.tunnels, *(kept for _, kept in self._kept)):
            upstream.close()
        await asyncio.sleep(0)
        child = self._child
        if child is None:
            return
        _signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await self._loop.run_in_executor(None, child.wait, _KILL_SECONDS)
        _signal_group(child.pid, signal.SIGKILL)
        await self._loop.run_in_executor(None, child.wait)

    def answers_itself(self, request: Request) -> bool:
        """Health and metrics are the gateway's when asked for directly; behind a prefix all paths are the user's."""
        return not request.prefix and b"x-forwarded-prefix" not in request.head.fields

    def begin(self, request: Request) -> Sink | None:
        if not self.admit(request) or not request.counted:
            return None
        if self.in_flight + len(self._early) > self._limit:
            request.fail(unavailable(f"The server has {self._limit} requests open, as many as it may. Try again."))
            return None
        exchange = Exchange(self, request)
        request.call = exchange
        if self._ready:
            exchange.start()
        else:
            self._early.append(exchange)
            self._loop.call_later(self.settings.timeout_seconds, self._too_early, exchange)
        return exchange

    def handle(self, request: Request) -> None:
        self.answer_own(request)

    def finished(self, request: Request) -> None:
        super().finished(request)
        if request.call is not None and request.call in self._early:
            self._early.remove(request.call)

    def kept(self) -> Upstream | None:
        """Return a connection to the user's server that is still open from an earlier request."""
        now = self._loop.time()
        while self._kept:
            since, upstream = self._kept.pop()
            if upstream.usable and now - since < _REUSE_SECONDS:
                return upstream
            upstream.close()
        return None

    def keep(self, upstream: Upstream) -> None:
        """Take back a connection whose request is over; it is used soon or not at all, as servers close idle ones."""
        self._kept.append((self._loop.time(), upstream))
        if len(self._kept) > _KEPT:
            self._kept.popleft()[1].close()

    def _too_early(self, exchange: Exchange) -> None:
        if exchange in self._early:
            self._early.remove(exchange)
            exchange.request.fail(unavailable("The server has not started to listen yet. Try again."))

    async def _await_port(self) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("localhost", self.settings.upstream_port)
            except OSError:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            writer.close()
            break
        self._ready = True
        log.info("The server listens on port %d", self.settings.upstream_port)
        while self._early:
            self._early.popleft().start()

    async def _await_end(self, child: subprocess.Popen[bytes]) -> None:
        status = await self._loop.run_in_executor(None, child.wait)
        self._ready = False
        log.error("The command has ended with %s", f"exit status {status}" if status >= 0 else f"signal {-status}")
        while self._early:
            self._early.popleft().request.fail(model_error("The server has ended before it listened on its port."))
        self._end(128 - status if status < 0 else status or 1)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
