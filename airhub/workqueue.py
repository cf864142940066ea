"""Keys of work, each handled by one worker at a time, again when it was asked for meanwhile, with back-off on failure."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 30.0


class WorkQueue:
    """Runs ``handle(key)`` for each key that is put.

    A key put while it waits is one piece of work; put while it is handled, it is handled once more afterwards. When
    ``handle`` raises, the key comes again after a growing, jittered delay.
    """

    def __init__(self, handle: Callable[[Any], Awaitable[None]], log: logging.Logger, concurrency: int = 64):
        self._handle = handle
        self._log = log
        self._slots = asyncio.Semaphore(concurrency)
        self._working: dict[Hashable, asyncio.Task[None]] = {}
        self._again: set[Hashable] = set()
        self._failures: dict[Hashable, int] = {}
        self._timers: dict[Hashable, asyncio.TimerHandle] = {}
        self._closed = False

    def put(self, key: Hashable, delay_seconds: float = 0.0) -> None:
        """Ask for ``key`` to be handled, at once or later; the earlier of two times wins."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if delay_seconds > 0:
            when = loop.time() + delay_seconds
            if timer is None or timer.when() > when:
                if timer is not None:
                    timer.cancel()
                self._timers[key] = loop.call_at(when, self._due, key)
            return
        if timer is not None:
            self._timers.pop(key).cancel()
        if key in self._working:
            self._again.add(key)
            return
        self._working[key] = loop.create_task(self._work(key), name=f"work {key}")

    async def close(self) -> None:
        """Stop: cancel what is being handled and forget what waits."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = list(self._working.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self, key: Hashable) -> None:
        self._timers.pop(key, None)
        self.put(key)

    async def _work(self, key: Hashable) -> None:
        try:
            async with self._slots:
                await self._handle(key)
            self._failures.pop(key, None)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (failures - 1)) * random.uniform(0.8, 1.2)
            self._log.warning("Work on %s failed (%s); again in %.1f s", key, exc, delay, exc_info=failures == 1)
            self._again.discard(key)
            self._working.pop(key, None)
            self.put(key, delay)
            return
        self._working.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.put(key)
