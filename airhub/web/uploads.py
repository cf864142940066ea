"""Uploads: a multipart body streamed to a file as it comes in, then taken in whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from airhub.errors import InvalidRequest, TooLarge
from airhub.web.routing import Call


class Receiver:
    """Takes in the ``file`` part of a multipart body, piece by piece."""

    def __init__(self, content_type: str, folder: Path, limit_bytes: int):
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest.of("file", "send multipart/form-data with one part named file (curl -F file=@archive.zip)")
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".upload-", dir=folder)
        self.path = Path(name)
        self.name: str | None = None
        self.complete = False
        self._file = os.fdopen(descriptor, "wb")
        self._limit = limit_bytes
        self._size = 0
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._taking = False
        self._unknown: str | None = None
        self._parser = MultipartParser(boundary, {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        })

    def feed(self, data: bytes) -> None:
        """Take in a piece of the body."""
        try:
            self._parser.write(data)
        except MultipartParseError as exc:
            raise InvalidRequest(f"The multipart body is malformed: {exc}.") from exc

    def finish(self) -> tuple[str, Path]:
        """Return the name and the place of the received file. Raises ``InvalidRequest`` when there is none."""
        self._file.close()
        if self._unknown is not None:
            raise InvalidRequest.of(self._unknown, "is not a known part; the upload's part is named file")
        if self.name is None or not self.complete:
            raise InvalidRequest.of("file", "is missing, or the body ended before it did")
        return self.name, self.path

    def discard(self) -> None:
        """Remove what was received, if it is still there."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _part_begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        part = options.get(b"name", b"").decode("utf-8", "replace")
        self._taking = part == "file"
        if not self._taking:
            self._unknown = part or "part"
            return
        if self.name is not None:
            raise InvalidRequest.of("file", "is given more than once")
        self.name = options.get(b"filename", b"").decode("utf-8", "replace")
        if not self.name:
            raise InvalidRequest.of("file", "needs a file name")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._taking:
            return
        self._size += end - start
        if self._size > self._limit:
            raise TooLarge(f"The upload is larger than the {self._limit} bytes that are allowed here.")
        self._file.write(data[start:end])

    def _part_end(self) -> None:
        self._taking = False

    def _end(self) -> None:
        self.complete = True


async def receive(call: Call) -> Any:
    """Answer ``POST /uploads``, once the body has come in."""
    name, path = call.handler.received()
    return await call.services.files.save(call.actor, name, path)
