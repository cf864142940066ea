"""A job's log over HTTP: a piece of it, or the rest as it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.iostream import StreamClosedError

from airhub.domain.lifecycle import HOLDING, Status
from airhub.domain.models import Train
from airhub.web.events import KEEP_ALIVE_SECONDS, begin_stream, frame, send
from airhub.web.routing import Call

PIECE = 1 << 16
MOST = 16 << 20
"""Bytes that one answer holds at most."""


async def serve_log(call: Call) -> None:
    """Answer ``GET /trains/{id}/logs``."""
    train, path = call.services.trains.log(call.actor, call.ids[0])
    if call.query["follow"]:
        await _follow(call, train, path)
        return
    start = call.query["after"]
    data = _read(path, start, min(call.query["limit"] or MOST, MOST))
    handler = call.handler
    handler.set_header("Content-Type", "text/plain; charset=utf-8")
    handler.set_header("X-Next-Offset", str(start + len(data)))
    handler.finish(data)


async def _follow(call: Call, train: Train, path: Path) -> None:
    handler = call.handler
    header = handler.request.headers.get("Last-Event-ID", "")
    offset = int(header) if header.isascii() and header.isdigit() and len(header) <= 18 else call.query["after"]
    begin_stream(handler)
    monitor = call.services.parts.monitor
    try:
        await send(handler, b": open\n\n")
        while not call.services.events.closing:
            over = not _goes_on(call, train)
            data = _read(path, offset, PIECE)
            if not over or not data:
                data = _whole_characters(data)
            if data:
                text = data.decode("utf-8", "replace")
                offset += len(data)
                await send(handler, frame("log", {"offset": offset - len(data), "text": text}, offset))
            elif over:
                await send(handler, frame("end", {"offset": offset, "state": _state(call, train)}, offset))
                return
            else:
                await monitor.log_grown(train.id, 1.0 if train.status not in HOLDING else KEEP_ALIVE_SECONDS)
                if not _read(path, offset, 1):
                    await send(handler, b": keep-alive\n\n")
    except (StreamClosedError, TimeoutError):
        return


def _goes_on(call: Call, train: Train) -> bool:
    record: Any = call.services.parts.store.get(Train, train.id)
    return record is not None and (record.status in HOLDING | {Status.QUEUED})


def _state(call: Call, train: Train) -> str | None:
    record = call.services.parts.store.get(Train, train.id)
    return None if record is None else record.state


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(start)
            return log.read(size)
    except FileNotFoundError:
        return b""


def _whole_characters(data: bytes) -> bytes:
    """Cut a character that has only begun, so that no piece of text breaks one."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return data[:-back] if need > back else data
    return data
