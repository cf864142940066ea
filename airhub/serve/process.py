"""The model's own process: started, spoken to over a socket, killed and buried by the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from . import frames
from .settings import environment_of_model

log = logging.getLogger("airhub.serve")

LOAD_FAILED = 3
_CLOSE_SECONDS = 1.0
_OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


class Owner(Protocol):
    """What a process tells about: the line in front of it."""

    def loaded(self, hello: dict[str, Any]) -> None: ...

    def answered(self, frame: frames.Frame) -> None: ...

    def ended(self, how: str) -> None: ...

    def restart(self) -> None: ...


class ModelProcess(asyncio.Protocol):
    """One process that has the model in memory. It ends by ``kill`` or by itself, and then its owner is told how.

    A process of its own, because nothing in Python ends a thread that hangs or gives back what it has eaten.
    """

    def __init__(self, owner: Owner, on_load_failed: Callable[[int], None]):
        self._owner = owner
        self._on_load_failed = on_load_failed
        self._loop = asyncio.get_running_loop()
        self._reader = frames.Reader()
        self._calls: Any = None
        self._answers: Any = None
        self._loaded = False
        self._killed = False
        self._ooms = _oom_kills()
        # A pair for each direction: a write that fails as the process dies must not cost its last answers.
        calls, to_calls = socket.socketpair()
        answers, from_answers = socket.socketpair()
        with calls, from_answers:
            descriptors = [calls.fileno(), from_answers.fileno()]
            self._child = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve().parent), "worker", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
                env=environment_of_model(),
            )
        self._closed = asyncio.Event()
        self._connecting = self._loop.create_task(self._connect(to_calls, answers))
        self._exit = self._loop.run_in_executor(None, self._child.wait)
        self._life = self._loop.create_task(self._live())

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, data: bytes) -> None:
        if not self._calls.is_closing():
            self._calls.write(data)

    def kill(self) -> None:
        """End the process and all that it has started."""
        self._killed = True
        _kill_group(self._child.pid)

    async def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self.kill()
        await self._exit

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while True:
            frame = self._reader.next()
            if frame is None:
                return
            if frame.number == frames.READY:
                self._loaded = True
                self._owner.loaded(json.loads(frame.body))
            else:
                self._owner.answered(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        self._loop.call_later(_CLOSE_SECONDS, self._kill_if_running)

    async def _connect(self, to_calls: socket.socket, answers: socket.socket) -> None:
        for end in (to_calls, answers):
            end.setblocking(False)
        self._calls, _ = await self._loop.create_unix_connection(asyncio.Protocol, sock=to_calls)
        self._answers, _ = await self._loop.create_unix_connection(lambda: self, sock=answers)

    async def _live(self) -> None:
        """Wait for the process's end, then tell the owner how it came."""
        await self._connecting
        status = await self._exit
        # What it has started may still hold the socket open; without them its last answers are read, then it closes.
        _kill_group(self._child.pid)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closed.wait(), _CLOSE_SECONDS)
        self._answers.close()
        self._calls.close()
        how = self._describe(status)
        if self._loaded or self._killed:
            log.error("%s; it is started again", how)
            self._owner.ended(how)
            self._owner.restart()
            return
        if status != LOAD_FAILED:
            log.error("%s while it loaded the model", how)
        self._on_load_failed(status if status > 0 else 128 - status if status else LOAD_FAILED)

    def _kill_if_running(self) -> None:
        if self._child.returncode is None:
            self.kill()

    def _describe(self, status: int) -> str:
        if status == -signal.SIGKILL and not self._killed:
            if _oom_kills() > self._ooms:
                return "The model's process ran out of memory and was killed"
            return "The model's process was killed, most likely because it ran out of memory,"
        if status < 0:
            return f"The model's process was ended by signal {-status} ({signal.Signals(-status).name})"
        return f"The model's process ended with exit status {status}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _oom_kills() -> int:
    """Return how many processes of this container the kernel has killed for memory; 0 where it does not say."""
    for path in _OOM_COUNTERS:
        try:
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return 0
