"""Cuts a stream of terminal bytes into the frames a person would have seen, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

HEAD_BYTES = 4096
TAIL_BYTES = 4096

_UP = re.compile(r"\x1b\[\d*[AF]")
_FORWARD = re.compile(r"\x1b\[(\d{0,3})C")
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI: colours, erasing, moving
    r"|\][^\x07\x1b]{0,2048}(?:\x07|\x1b\\|$)"  # OSC: titles and links
    r"|[PX^_][^\x1b]{0,2048}(?:\x1b\\|$)"
    r"|[()*+][0-9A-Za-z]|[ -/][0-~]|[0-~]"
    r"|\[?[0-?]{0,64}$)"  # cut off at the end of what has arrived
)
_BACK = re.compile(r"\x08+")
_CONTROL = dict.fromkeys([*range(9), *range(11, 13), *range(14, 32), 127])


class Screen:
    """Splits bytes into raw frames at ``\\n`` and ``\\r``; ``\\r\\n`` is one end of line.

    A frame longer than ``HEAD_BYTES + TAIL_BYTES`` keeps its two ends, so that a line without an end costs
    nothing; the result does not depend on how the bytes were cut.
    """

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._long = False
        self._return = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every frame that these bytes end."""
        if self._return and data:
            self._return = False
            if not data.startswith(b"\n"):
                yield self.take()
        if data.endswith(b"\r"):
            # Whether this redraws or ends the line is known with the next byte.
            self._return = True
            data = data[:-1]
        lines = data.replace(b"\r\n", b"\n").split(b"\n") if b"\r" in data else data.split(b"\n")
        last = lines.pop()
        for line in lines:
            if b"\r" in line:
                yield from self._frames(line)
            else:
                yield self._close(line)
        if b"\r" in last:
            *frames, last = last.split(b"\r")
            for frame in frames:
                yield self._close(frame)
        self._add(last)

    @property
    def open(self) -> bytes:
        """The frame that has not ended yet."""
        return self._head + b" | " + self._tail if self._long else self._head + self._tail

    def take(self) -> bytes:
        """Return the open frame and forget it."""
        frame = self.open
        self._head = self._tail = b""
        self._long = False
        return frame

    def copy(self) -> Screen:
        other = Screen()
        other.__dict__.update(self.__dict__)
        return other

    def _frames(self, line: bytes) -> Iterator[bytes]:
        for frame in line.split(b"\r"):
            yield self._close(frame)

    def _close(self, piece: bytes) -> bytes:
        if not self._head and len(piece) <= HEAD_BYTES:
            return piece
        self._add(piece)
        return self.take()

    def _add(self, piece: bytes) -> None:
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += piece[:room]
            piece = piece[room:]
        if not piece:
            return
        tail = self._tail + piece[-TAIL_BYTES:]
        if len(self._tail) + len(piece) > TAIL_BYTES:
            self._long = True
        self._tail = tail[-TAIL_BYTES:]


def visible(raw: bytes) -> list[tuple[str, bool]]:
    """Return the texts one raw frame shows, in order, each with whether it stands below another (nested bars).

    Moves up the screen end a text; backspaces show the text so far and then take it back.
    """
    text = raw.decode("utf-8", "replace")
    if "\x1b" not in text and "\x08" not in text:
        return [(text.translate(_CONTROL) if not text.isprintable() else text, False)]
    shown = []
    pieces = _UP.split(text)[-32:]
    for index, piece in enumerate(pieces):
        if "\x1b" in piece:
            piece = _FORWARD.sub(lambda found: " " * min(int(found[1] or 1), 200), piece)
            piece = _ESCAPE.sub("", piece)
        nested = index < len(pieces) - 1
        for part in _erased(piece) if "\x08" in piece else [piece]:
            part = part.translate(_CONTROL)
            if part.strip():
                shown.append((part, nested))
    return shown


def _erased(text: str) -> list[str]:
    shown, line, start = [], "", 0
    for run in _BACK.finditer(text):
        line += text[start : run.start()]
        if line.strip():
            shown.append(line)
        line = line[: -len(run[0])]
        start = run.end()
    line += text[start:]
    if line.strip():
        shown.append(line)
    return shown[-4:]
