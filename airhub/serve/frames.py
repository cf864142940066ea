"""What server and model process say to each other over their socket: one framing, read by both sides."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

HEADER = struct.Struct("<IHBIQ")
"""Number of the call, kind or status, flags, length of the meta part, length of the body."""

PREDICT, PREDICT_BINARY, INFER = 0, 1, 2
READY = 0
"""The number of the model process's first message: it has loaded, the body says how it wants to be called."""

WORN_OUT = 1
"""Flag of an answer: the process has run out of memory and should be replaced."""


class Frame(NamedTuple):
    """One message. ``code`` is the kind of a call or the HTTP status of an answer."""

    number: int
    code: int
    flags: int
    meta: bytes
    body: bytes


def pack(number: int, code: int, flags: int = 0, meta: bytes = b"", body: Any = b"") -> bytes:
    return HEADER.pack(number, code, flags, len(meta), len(body)) + meta + body


class Reader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._needed = HEADER.size

    def feed(self, data: bytes) -> None:
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def next(self) -> Frame | None:
        """Return the next whole frame, None until more has come."""
        buffer, start = self._buffer, self._position
        if len(buffer) - start < self._needed:
            return None
        number, code, flags, meta_length, body_length = HEADER.unpack_from(buffer, start)
        body_at = start + HEADER.size + meta_length
        end = body_at + body_length
        if len(buffer) < end:
            self._needed = end - start
            return None
        self._needed = HEADER.size
        with memoryview(buffer) as view:
            frame = Frame(number, code, flags, bytes(view[start + HEADER.size : body_at]), bytes(view[body_at:end]))
        self._position = end
        if end == len(buffer):
            self._buffer = bytearray()
            self._position = 0
        return frame
