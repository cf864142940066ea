"""The line in front of the model: who is being answered, who waits, what has taken too long."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from . import frames
from .faults import Fault, model_error, too_large, unavailable
from .process import ModelProcess

log = logging.getLogger("airhub.serve")
_TICK_SECONDS = 0.1
_QUICK_SECONDS = 0.002
_AHEAD = 32


class Call:
    """One call of ``predict``. ``done(status, headers, body)`` or ``failed(fault)`` is called once."""

    __slots__ = ("number", "kind", "meta", "body", "done", "failed", "arrived", "started", "over")

    def __init__(
        self,
        kind: int,
        meta: bytes,
        body: bytes,
        done: Callable[[int, bytes, bytes], None],
        failed: Callable[[Fault], None],
    ):
        self.number = 0
        self.kind = kind
        self.meta = meta
        self.body = body
        self.done = done
        self.failed = failed
        self.arrived = 0.0
        self.started = 0.0
        self.over = False


class Pool:
    """Hands calls to the model's process, at most ``slots`` at once, and answers for it when it cannot.

    While ``predict`` is quick some calls are sent ahead of their turn, so that the process never waits for the next;
    as it takes calls in the order in which they were sent, it is always known which ones it has begun.
    """

    def __init__(
        self,
        start: Callable[[Pool], ModelProcess],
        timeout_seconds: float,
        queue: int,
        max_response_bytes: int,
        on_change: Callable[[], None],
    ):
        self.slots = 1
        self.ready = False
        self.restarts = 0
        self._start = start
        self._timeout = timeout_seconds
        self._queue_limit = queue
        self._max_response = max_response_bytes
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Call] = {}
        self._ahead: deque[Call] = deque()
        self._waiting: deque[Call] = deque()
        self._number = 0
        self._seconds = _QUICK_SECONDS
        self._ticking = False
        self._stopped = False
        self._process: ModelProcess | None = None

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._ahead) + len(self._waiting)

    @property
    def idle(self) -> bool:
        return not (self._running or self._ahead or self._waiting)

    def start(self) -> None:
        """Start the model's process; it says by itself when it has loaded."""
        self.ready = False
        self._process = self._start(self)

    async def stop(self) -> None:
        """End the model's process for good."""
        self._stopped = True
        if self._process is not None:
            await self._process.end()

    def submit(self, call: Call) -> None:
        """Take a call, or raise the 503 of a full line."""
        if len(self._running) + len(self._ahead) + len(self._waiting) >= self.slots + self._queue_limit:
            raise unavailable(
                f"The model has as many requests as it may hold ({self.slots} in work, {self._queue_limit} waiting). "
                "Try again in a moment.",
                self._retry_seconds(),
            )
        call.arrived = self._loop.time()
        self._waiting.append(call)
        self._send()
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_SECONDS, self._tick, self._loop.time() + _TICK_SECONDS)

    def cancel(self, call: Call) -> None:
        """Forget a call whose caller has gone; one that the model has begun is worked off unheard."""
        call.over = True
        if not call.number:
            self._waiting.remove(call)

    def loaded(self, hello: dict[str, Any]) -> None:
        """The process has loaded the model and says how many calls it takes at once."""
        self.slots = hello["slots"]
        self.ready = True
        self._on_change()
        self._send()

    def answered(self, frame: frames.Frame) -> None:
        """Take one answer of the process and hand it to its caller."""
        call = self._running.pop(frame.number, None)
        if call is None:
            return
        now = self._loop.time()
        self._seconds += 0.2 * (now - call.started - self._seconds)
        if frame.flags & frames.WORN_OUT:
            self.ready = False
        self._send()
        if not call.over:
            call.over = True
            if len(frame.body) > self._max_response:
                limit = self._max_response
                call.failed(too_large(f"The answer is larger than {limit} bytes, the limit of this endpoint."))
            else:
                call.done(frame.code, frame.meta, frame.body)
        if frame.flags & frames.WORN_OUT and self._process is not None:
            self._process.kill()
        if self.idle:
            self._on_change()

    def ended(self, how: str) -> None:
        """The process has ended by itself or was killed: answer for what it had begun, keep the rest, start anew."""
        self.ready = False
        begun = list(self._running.values())
        self._running.clear()
        while self._ahead:
            call = self._ahead.pop()
            call.number = 0
            if not call.over:
                self._waiting.appendleft(call)
        for call in begun:
            if not call.over:
                call.over = True
                call.failed(model_error(f"{how} while it worked on this request. It has been started again."))
        self._on_change()

    def restart(self) -> None:
        """Start the process again after one has ended."""
        if not self._stopped:
            self.restarts += 1
            self.start()

    def _send(self) -> None:
        process = self._process
        if not self.ready or process is None:
            return
        ahead, waiting, running = self._ahead, self._waiting, self._running
        # A slow model still finds its next call there, unless that one is the last and its caller may yet go.
        limit = _AHEAD if self._seconds < _QUICK_SECONDS else int(len(waiting) > 1)
        while ahead and len(running) < self.slots:
            call = ahead.popleft()
            call.started = self._loop.time()
            running[call.number] = call
        while waiting and (len(running) < self.slots or len(ahead) < limit):
            call = waiting.popleft()
            self._number = self._number % 0xFFFFFFFF + 1
            call.number = self._number
            if len(running) < self.slots:
                call.started = self._loop.time()
                running[call.number] = call
            else:
                ahead.append(call)
            process.send(frames.pack(call.number, call.kind, 0, call.meta, call.body))

    def _tick(self, due: float) -> None:
        """Look for calls that have taken too long. While the container was frozen no time has passed for them."""
        now = self._loop.time()
        lost = now - due
        if lost > 1.0:
            for call in (*self._running.values(), *self._ahead, *self._waiting):
                call.arrived += lost
                call.started += lost
        late = [call for call in self._running.values() if now - call.started > self._timeout]
        if late:
            self._give_up(late)
        while self._waiting and now - self._waiting[0].arrived > self._timeout:
            call = self._waiting.popleft()
            call.over = True
            call.failed(unavailable("The model was busy with others for too long. Try again.", self._retry_seconds()))
        if self.idle:
            self._ticking = False
            self._on_change()
        else:
            self._loop.call_later(_TICK_SECONDS, self._tick, now + _TICK_SECONDS)

    def _give_up(self, late: list[Call]) -> None:
        """Answer calls that are over their time and kill the process, as nothing else ends a running ``predict``."""
        log.error("predict has taken more than %g s; the model's process is started again", self._timeout)
        self.ready = False
        running = list(self._running.values())
        self._running.clear()
        for call in running:
            if call.over:
                continue
            call.over = True
            if call in late:
                message = f"predict took longer than {self._timeout:g} s, the time limit of this endpoint."
                call.failed(Fault(504, "model_timeout", message))
            else:
                message = "Another request was over its time limit and the model was started again. Try again."
                call.failed(unavailable(message))
        if self._process is not None:
            self._process.kill()

    def _retry_seconds(self) -> int:
        return max(1, min(60, round(self._seconds * len(self._waiting) / self.slots)))
