"""Server-Sent Events: one stream for all of a user's objects, resumable without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from tornado.iostream import StreamClosedError

from airhub.domain.models import EventRow
from airhub.errors import InvalidRequest
from airhub.store import Store
from airhub.web.routing import Call

KEEP_ALIVE_SECONDS = 15.0
MOST_BEHIND = 5000
"""A reader that is this many events behind is dropped; it resumes with Last-Event-ID."""
SLOW_WRITE_SECONDS = 30.0
PAGE = 500


class Subscriber:
    """One reader of the stream."""

    def __init__(self, owner: str | None):
        self.owner = owner
        self.rows: list[EventRow] = []
        self.wake = asyncio.Event()
        self.overrun = False

    def offer(self, rows: Sequence[EventRow]) -> None:
        mine = [row for row in rows if self.owner is None or row.owner == self.owner]
        if not mine:
            return
        if len(self.rows) + len(mine) > MOST_BEHIND:
            self.overrun = True
        else:
            self.rows += mine
        self.wake.set()


class EventStream:
    """Hands every committed event to those who listen."""

    def __init__(self, store: Store):
        self._store = store
        self._subscribers: set[Subscriber] = set()
        self._closing = asyncio.Event()
        store.on_events(self._offer)

    def close(self) -> None:
        """End all streams; browsers come back by themselves."""
        self._closing.set()
        for subscriber in self._subscribers:
            subscriber.wake.set()

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    async def serve(self, call: Call) -> None:
        """Write the stream of one request until its reader goes away."""
        handler, actor = call.handler, call.actor
        owner = actor.list_owner(call.query["owner"]) if actor.is_admin and call.query["owner"] else actor.name
        after = self._start(call)
        subscriber = Subscriber(owner)
        self._subscribers.add(subscriber)
        try:
            begin_stream(handler)
            low, high = self._store.event_bounds()
            if after is None:
                last = high
                await send(handler, b": open\n\n")
            elif after > high or after < low - 1:
                last = high
                await send(handler, frame("reset", {"after": high}, high))
            else:
                last = await self._replay(handler, owner, after)
            while not (self.closing or subscriber.overrun):
                try:
                    await asyncio.wait_for(subscriber.wake.wait(), KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    await send(handler, b": keep-alive\n\n")
                    continue
                subscriber.wake.clear()
                rows, subscriber.rows = subscriber.rows, []
                data = b"".join(event_frame(row) for row in rows if row.sequence > last)
                if data:
                    last = rows[-1].sequence
                    await send(handler, data)
        except (StreamClosedError, TimeoutError):
            return
        finally:
            self._subscribers.discard(subscriber)

    async def _replay(self, handler: Any, owner: str | None, after: int) -> int:
        last = after
        while rows := self._store.events_after(last, owner, PAGE):
            last = rows[-1].sequence
            await send(handler, b"".join(event_frame(row) for row in rows))
        await send(handler, b": caught up\n\n")
        return last

    def _start(self, call: Call) -> int | None:
        header = call.handler.request.headers.get("Last-Event-ID")
        if header is not None:
            if not (header.isascii() and header.isdigit() and len(header) <= 18):
                raise InvalidRequest.of("Last-Event-ID", "must be the id of an event of this stream")
            return int(header)
        after = call.query["after"]
        return None if after is None else int(after)

    def _offer(self, rows: Sequence[EventRow]) -> None:
        for subscriber in self._subscribers:
            subscriber.offer(rows)


def begin_stream(handler: Any) -> None:
    """Set the headers of a stream of events."""
    handler.set_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.set_header("Cache-Control", "no-cache, no-transform")
    handler.set_header("X-Accel-Buffering", "no")


async def send(handler: Any, data: bytes) -> None:
    """Write a piece of a stream; ``TimeoutError`` when the reader takes none for long."""
    handler.write(data)
    await asyncio.wait_for(handler.flush(), SLOW_WRITE_SECONDS)


def event_frame(row: EventRow) -> bytes:
    return frame(row.event, row.data, row.sequence)


def frame(event: str, data: Any, event_id: int | None = None) -> bytes:
    """Return one event in the format of the HTML standard."""
    head = f"event: {event}\n" if event_id is None else f"id: {event_id}\nevent: {event}\n"
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"
