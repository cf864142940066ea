"""Downloads of single files, with ranges."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any
from urllib.parse import quote

from tornado.iostream import StreamClosedError

from airhub.usecases.views import moment
from airhub.web.routing import Call

PIECE = 1 << 18


async def serve_file(call: Call) -> None:
    """Answer ``GET /files/content``."""
    handler = call.handler
    opened = await call.services.files.open(call.actor, call.query["path"])
    try:
        await _send(handler, opened, call.query["path"])
    except StreamClosedError:
        return
    finally:
        os.close(opened.fd)


async def _send(handler: Any, opened: Any, path: str) -> None:
    size = opened.size_bytes
    tag = f'"{int(opened.modified_at.timestamp() * 1e6):x}-{size:x}"'
    name = path.rstrip("/").rsplit("/", 1)[-1]
    handler.set_header("Content-Type", "application/octet-stream")
    handler.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}")
    handler.set_header("Accept-Ranges", "bytes")
    handler.set_header("Etag", tag)
    handler.set_header("X-Modified-At", moment(opened.modified_at) or "")
    start, end = 0, size
    wanted = handler.request.headers.get("Range")
    if wanted and handler.request.headers.get("If-Range", tag) == tag:
        found = _range(wanted, size)
        if found == (0, 0):
            handler.set_status(416)
            handler.set_header("Content-Range", f"bytes */{size}")
            handler.set_header("Content-Length", "0")
            handler.finish()
            return
        if found is not None:
            start, end = found
            handler.set_status(206)
            handler.set_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
    handler.set_header("Content-Length", str(end - start))
    if handler.request.method != "HEAD":
        while start < end:
            data = await asyncio.to_thread(os.pread, opened.fd, min(PIECE, end - start), start)
            if not data:
                break
            start += len(data)
            handler.write(data)
            await handler.flush()
    handler.finish()


def _range(text: str, size: int) -> tuple[int, int] | None:
    """Read a ``Range`` of one part as (start, end); (0, 0) when nothing of the file lies in it, null when it is not understood."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", text)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, size) if length else (0, 0)
    start = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    if start >= size:
        return 0, 0
    return (start, end) if end > start else None
