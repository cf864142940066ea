"""Finds the last Python traceback in a log: what was raised, and in which line of the user's code."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

_PREFIX = r"(?:\[[^\]\n]{1,40}\]:? ?)?"
_FRAME = re.compile(rf'^{_PREFIX}  File "([^"\n]+)", line (\d+)(?:, in (.+))?$')
_START = re.compile(rf"^{_PREFIX}(?:  [|+] )*Traceback \(most recent call last\):\s*$")
_ERROR = re.compile(rf"^{_PREFIX}([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning|Iteration|Group)?)(?::\s?(.*))?$")
_SYNTAX = re.compile(rf'^{_PREFIX}  File "([^"\n]+)", line (\d+)\s*$')
CODE_FOLDER = "/data/code/"


@dataclass(frozen=True)
class Traceback:
    """Where the user's code broke. ``file`` is below the code folder where the frame is the user's own."""

    last_line: str
    file: str | None
    line: int | None
    text: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def last_traceback(log: bytes) -> Traceback | None:
    """Return the last traceback of a log's end; null when there is none."""
    lines = [line.rstrip("\r") for line in log.decode("utf-8", "replace").split("\n")]
    starts = [index for index, line in enumerate(lines) if _START.match(line)]
    for start in reversed(starts):
        found = _read(lines, start)
        if found is not None:
            return found
    return _syntax_error(lines)


def _read(lines: list[str], start: int) -> Traceback | None:
    frames: list[tuple[str, int]] = []
    for index in range(start + 1, min(len(lines), start + 2000)):
        line = lines[index]
        frame = _FRAME.match(line)
        if frame:
            frames.append((frame[1], int(frame[2])))
        elif not re.match(rf"^{_PREFIX}\s", line) and line.strip():
            error = _ERROR.match(line)
            if error is None:
                return None
            last = re.sub(rf"^{_PREFIX}", "", line).strip()
            file, number = _own_frame(frames)
            return Traceback(last[:1000], file, number, "\n".join(lines[start : index + 1])[-8000:])
    return None


def _syntax_error(lines: list[str]) -> Traceback | None:
    for index in range(len(lines) - 1, -1, -1):
        if re.match(rf"^{_PREFIX}(SyntaxError|IndentationError|TabError): ", lines[index]):
            for above in range(index - 1, max(index - 6, -1), -1):
                frame = _SYNTAX.match(lines[above])
                if frame:
                    file, number = _own_frame([(frame[1], int(frame[2]))])
                    text = "\n".join(lines[above : index + 1])
                    return Traceback(lines[index].strip()[:1000], file, number, text)
    return None


def _own_frame(frames: list[tuple[str, int]]) -> tuple[str | None, int | None]:
    """Prefer the innermost frame in the user's code over one in a library."""
    for file, number in reversed(frames):
        if file.startswith(CODE_FOLDER):
            return file.removeprefix(CODE_FOLDER), number
        if "/trees/" in file:
            return file.split("/trees/", 1)[1].partition("/")[2], number
    for file, number in reversed(frames):
        if "site-packages" not in file and not file.startswith(("<", "/usr/lib")):
            return file, number
    return frames[-1] if frames else (None, None)
