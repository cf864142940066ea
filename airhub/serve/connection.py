"""One client's connection: reads requests, holds one at a time for the application, writes its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from typing import Any, Protocol

from . import http11
from .faults import REASONS, Fault, too_large, unavailable

log = logging.getLogger("airhub.serve")

JSON_TYPE = b"Content-Type: application/json\r\n"
_AHEAD_BYTES = 64 * 1024
_LINGER_SECONDS = 5.0
_HEADS = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()}


class Sink(Protocol):
    """Takes a request's body as it arrives, in place of a whole body in memory."""

    def feed(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None:
        """Called when the client has gone, whether or not its body was whole."""


class Application(Protocol):
    """What answers requests. ``begin`` sees the head, ``handle`` the whole body unless ``begin`` gave a sink."""

    max_request_bytes: int
    draining: bool

    def begin(self, request: Request) -> Sink | None: ...

    def handle(self, request: Request) -> None: ...

    def finished(self, request: Request) -> None:
        """Called once when the request is answered, or its client gone without (then ``status`` is 0)."""

    def may_hold(self, size: int) -> bool: ...

    def let_go(self, size: int) -> None: ...


class Request:
    """One request. ``reply`` answers it once; later replies do nothing, so a time limit may race with an answer."""

    __slots__ = (
        "method",
        "path",
        "query",
        "http11",
        "head",
        "body",
        "prefix",
        "connection",
        "arrived",
        "status",
        "call",
        "open_inference",
        "trusted",
        "counted",
    )

    def __init__(self, connection: Connection, head: http11.Head):
        self.head = head
        self.method, self.path, self.query, self.http11 = http11.parse_request_line(head.first)
        self.body = b""
        self.prefix = ""
        self.connection = connection
        self.arrived = connection.loop.time()
        self.status = 0
        self.call: Any = None
        self.open_inference = False
        self.trusted = False
        self.counted = False

    @property
    def replied(self) -> bool:
        return self.status != 0

    def header(self, name: bytes) -> str:
        return self.head.fields.get(name, b"").decode("latin-1")

    def reply(self, status: int, body: bytes, headers: bytes = JSON_TYPE) -> None:
        """Answer with a whole body. ``headers`` are ready lines, each with its line end."""
        if not self.status:
            self.status = status
            self.connection.write_reply(self, body, headers)

    def fail(self, fault: Fault) -> None:
        extra = "".join(f"{name}: {value}\r\n" for name, value in fault.headers.items()).encode()
        self.reply(fault.status, fault.body(self.open_inference), JSON_TYPE + extra)


class Connection(asyncio.Protocol):
    """Reads requests one after the other; the next one waits until this one is answered."""

    def __init__(self, app: Application, loop: asyncio.AbstractEventLoop, every: set[Connection]):
        self.app = app
        self.loop = loop
        self.transport: Any = None
        self.request: Request | None = None
        self.tunnel: Any = None
        self.last_seen = loop.time()
        self.on_writable: Any = None
        self.writable = True
        self._every = every
        self._buffer = b""
        self._framing: http11.Body | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._held = 0
        self._sink: Sink | None = None
        self._reading = False
        self._paused = False
        self._close_after = False
        self._advancing = False
        self._chunked_reply = False
        self._finished = False

    @property
    def busy(self) -> bool:
        """True while a request is being read or answered."""
        return self.request is not None or self.tunnel is not None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._every.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._every.discard(self)
        request, sink, tunnel = self.request, self._sink, self.tunnel
        self.request = self._sink = self.tunnel = None
        self._release()
        if tunnel is not None:
            tunnel.close()
        if sink is not None:
            sink.abort()
        if request is not None and not self._finished:
            self._finished = True
            self.app.finished(request)

    def data_received(self, data: bytes) -> None:
        self.last_seen = self.loop.time()
        if self.tunnel is not None:
            self.tunnel.write(data)
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self.request is None or self._reading:
            self._advance()
        elif len(self._buffer) > _AHEAD_BYTES:
            self.pause(True)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading from the client."""
        if paused != self._paused and not self.transport.is_closing():
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def close_if_stale(self, now: float, idle_seconds: float, body_seconds: float) -> None:
        """Close a connection on which nothing, or only a part of a request, has come for too long."""
        silent = now - self.last_seen
        waiting = self.request is None and self.tunnel is None
        if waiting and silent > (body_seconds if self._buffer else idle_seconds):
            self.transport.close()
        elif self._reading and not self._paused and silent > body_seconds:
            self.transport.abort()

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._buffer and (self.request is None or self._reading) and not self.transport.is_closing():
                if not (self._read_head() if self.request is None else self._read_body()):
                    break
        except http11.BadMessage as exc:
            self._refuse(exc)
        except Exception:
            log.exception("A request could not be handled")
            self._close_after = True
            if self.request is None or self.request.replied:
                self.transport.close()
            else:
                self.request.fail(Fault(500, "internal", "The server has failed on this request; its log says why."))
        finally:
            self._advancing = False

    def _read_head(self) -> bool:
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if buffer in (b"\r", b"\r\n"):
                return False
            if len(buffer) > http11.MAX_HEAD_BYTES:
                raise http11.BadMessage(f"the header is longer than {http11.MAX_HEAD_BYTES} bytes", 431)
            return False
        if end > http11.MAX_HEAD_BYTES:
            raise http11.BadMessage(f"the header is longer than {http11.MAX_HEAD_BYTES} bytes", 431)
        start = 2 if buffer.startswith(b"\r\n") else 0
        head = http11.parse_head(buffer[start:end])
        request = Request(self, head)
        framing = http11.request_body(head, request.http11)
        if request.http11 and b"host" not in head.fields:
            raise http11.BadMessage("the Host header is missing")
        self._buffer = buffer[end + 4 :]
        self._close_after = http11.wants(head, b"close") or (
            not request.http11 and not http11.wants(head, b"keep-alive")
        )
        self.request = request
        self._finished = False
        self._framing = framing
        self._reading = not framing.done
        self._sink = self.app.begin(request)
        if not framing.done:
            if not request.replied:
                self._check_size(framing.length or 0)
            if self.request is not None and not request.replied and not self._buffer and request.http11:
                if request.head.fields.get(b"expect", b"").lower() == b"100-continue":
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif not request.replied:
            self._whole(request)
        return True

    def _read_body(self) -> bool:
        request, framing = self.request, self._framing
        assert request is not None and framing is not None
        content, self._buffer = framing.feed(self._buffer)
        if request.replied and self._sink is None:
            # The answer did not wait for the body: what still comes is read and dropped, then the connection ends.
            if framing.done:
                self._done()
            return bool(self._buffer)
        if content:
            self._size += len(content)
            if framing.length is None:
                self._check_size(0)
            if self._sink is not None:
                self._sink.feed(content)
            else:
                self._chunks.append(content)
        if framing.done and (self._sink is not None or not request.replied):
            self._reading = False
            self._whole(request)
        return bool(self._buffer)

    def _whole(self, request: Request) -> None:
        sink = self._sink
        if sink is not None:
            sink.finish()
            return
        if self._chunks:
            request.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks = []
        self.app.handle(request)

    def _check_size(self, announced: int) -> None:
        """Refuse a body over the limit, or one for which the server has no memory left just now."""
        request, limit = self.request, self.app.max_request_bytes
        assert request is not None
        size = max(self._size, announced)
        if size > limit:
            if request.replied:
                self.transport.abort()
            request.fail(too_large(f"The request is larger than {limit} bytes, the limit of this endpoint."))
        elif self._sink is None and size > self._held + _AHEAD_BYTES:
            if self.app.may_hold(size - self._held):
                self._held = size
            else:
                request.fail(unavailable("Too many large requests at once. Try again."))

    def _release(self) -> None:
        if self._held:
            self.app.let_go(self._held)
            self._held = 0

    def _refuse(self, exc: http11.BadMessage) -> None:
        request, sink = self.request, self._sink
        self._close_after = True
        self._buffer = b""
        fault = Fault(exc.status, "invalid_request", f"This is not HTTP as it must be: {exc}.")
        if request is None:
            body = fault.body()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                % (exc.status, REASONS.get(exc.status, "Bad Request").encode(), len(body), body)
            )
            self.transport.close()
            return
        if sink is not None:
            self._sink = None
            sink.abort()
        self._reading = False
        if request.replied:
            self.transport.close()
        else:
            request.fail(fault)

    def write_reply(self, request: Request, body: bytes, headers: bytes) -> None:
        """Write a whole answer; called by ``Request.reply`` alone."""
        if self.request is not request or self.transport.is_closing():
            return
        head = _HEADS.get(request.status) or b"HTTP/1.1 %d Answer\r\n" % request.status
        unread = self._reading
        if unread or self._close_after or self.app.draining:
            self._close_after = True
            headers += b"Connection: close\r\n"
        lead = b"%b%bDate: %b\r\nContent-Length: %d\r\n\r\n" % (head, headers, _date(), len(body))
        if request.method == "HEAD":
            self.transport.write(lead)
        elif len(body) > 65536:
            self.transport.write(lead)
            self.transport.write(body)
        else:
            self.transport.write(lead + body)
        self._end_reply(unread)

    def start_reply(self, request: Request, status: int, lines: bytes, length: int | None) -> None:
        """Write the head of an answer whose body follows in pieces; ``length`` None where it is not known."""
        request.status = status
        ending = b""
        self._chunked_reply = False
        if self._reading or self.app.draining:
            self._close_after = True
        if length is not None:
            ending = b"Content-Length: %d\r\n" % length
        elif request.method != "HEAD" and status >= 200 and status not in (204, 304):
            if request.http11:
                self._chunked_reply = True
                ending = b"Transfer-Encoding: chunked\r\n"
            else:
                self._close_after = True
        if self._close_after:
            ending += b"Connection: close\r\n"
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, _reason(status), lines, ending))

    def write_body(self, data: bytes) -> None:
        if data:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked_reply else data)

    def end_reply(self) -> None:
        if self._chunked_reply:
            self.transport.write(b"0\r\n\r\n")
        self._end_reply(self._reading)

    def open_tunnel(self, request: Request, status: int, lines: bytes, other: Any) -> bytes:
        """Answer an upgrade: from here every byte goes to ``other``. Returns what the client has sent already."""
        request.status = status
        self.tunnel = other
        self.app.finished(request)
        self.request = self._sink = None
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _reason(status), lines))
        self.pause(False)
        ahead, self._buffer = self._buffer, b""
        return ahead

    def _end_reply(self, unread: bool) -> None:
        assert self.request is not None
        self._release()
        self._chunks = []
        self._finished = True
        self.app.finished(self.request)
        if not unread:
            self._done()
            return
        # Closing while the client still sends would reset the connection before it has read the answer.
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()
        self.pause(False)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _done(self) -> None:
        self.request = self._sink = self._framing = None
        self._reading = False
        self._size = 0
        self.on_writable = None
        if self._close_after:
            self.transport.close()
            return
        self.pause(False)
        if self._buffer and not self._advancing:
            self.loop.call_soon(self._advance)


def _reason(status: int) -> bytes:
    return REASONS.get(status, "Switching Protocols" if status == 101 else "Answer").encode()


_date_line = (0, b"")


def _date() -> bytes:
    """Return the Date header's value, made once a second."""
    global _date_line
    now = int(time.time())
    if _date_line[0] != now:
        _date_line = (now, formatdate(now, usegmt=True).encode())
    return _date_line[1]
