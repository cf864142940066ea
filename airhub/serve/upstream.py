"""One request on its way to the user's own server and back, and the connections that it goes over."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from . import http11
from .connection import Request
from .faults import Fault, model_error, unavailable
from .settings import Settings

_NOT_UP = frozenset((b"authorization", b"cookie", b"x-airhub-secret", b"x-forwarded-prefix", b"content-length"))
_NOT_DOWN = frozenset((b"set-cookie", b"content-length", b"date"))
_REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS"))


class Gateway(Protocol):
    """What an exchange needs of the gateway: connections, and where tunnels are known."""

    settings: Settings
    tunnels: set[Upstream]

    def kept(self) -> Upstream | None: ...

    def keep(self, upstream: Upstream) -> None: ...


class Exchange:
    """One request and its answer; as a sink it takes the request's body."""

    def __init__(self, gateway: Gateway, request: Request):
        self.gateway = gateway
        self.request = request
        self.client = request.connection
        self.upgrades = http11.wants(request.head, b"upgrade") and b"upgrade" in request.head.fields
        self.sent_body = False
        self.body_done = False
        self._chunked = b"transfer-encoding" in request.head.fields
        self._early: list[bytes] = []
        self._upstream: Upstream | None = None
        self._gone = False
        self._fresh = False
        self._moved = self.client.loop.time()
        self._connecting: asyncio.Task[None] | None = None
        self._watching: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Send the request over a kept connection, or a new one."""
        self._moved = self.client.loop.time()
        if self._watching is None:
            self._watching = self.client.loop.call_later(self.gateway.settings.timeout_seconds, self._watch)
        upstream = None if self._fresh else self.gateway.kept()
        if upstream is not None:
            self._attach(upstream)
        else:
            self._fresh = True
            self._connecting = self.client.loop.create_task(self._connect())

    def feed(self, data: bytes) -> None:
        self.sent_body = True
        self._moved = self.client.loop.time()
        piece = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if self._upstream is not None:
            self._upstream.write(piece)
        elif not self._gone:
            self._early.append(piece)
            self.client.pause(True)

    def finish(self) -> None:
        self.body_done = True
        self._moved = self.client.loop.time()
        if self._chunked:
            if self._upstream is not None:
                self._upstream.write(b"0\r\n\r\n")
            else:
                self._early.append(b"0\r\n\r\n")

    def abort(self) -> None:
        """The client has gone, or has its answer before its body was whole."""
        self._leave()

    def headed(self) -> None:
        """The answer has begun: from here no time limit holds, as streams may last."""
        if self._watching is not None:
            self._watching.cancel()

    def over(self, reusable: bool) -> None:
        """The answer is whole."""
        upstream, self._upstream, self._gone = self._upstream, None, True
        self.headed()
        if upstream is not None:
            upstream.exchange = None
            if reusable and self.body_done:
                self.gateway.keep(upstream)
            else:
                upstream.close()
        self.client.end_reply()

    def lost(self, answered: bool) -> None:
        """The connection has ended before the answer was whole."""
        self._upstream = None
        if self._gone:
            return
        if answered:
            # A stream that breaks must not look as if it were complete.
            self._gone = True
            self.client.transport.abort()
        elif not self._fresh and not self.sent_body and self.request.method in _REPEATABLE:
            self._fresh = True
            self.start()
        else:
            self.fail(model_error("The server closed the connection without an answer."))

    def fail(self, fault: Fault) -> None:
        self._leave()
        self.request.fail(fault)

    def hold(self, held: bool) -> None:
        """Let the client wait with its body while the server does not take it."""
        self.client.pause(held)

    def head(self) -> bytes:
        """Return the request's head as the user's server gets it."""
        request = self.request
        prefix = request.prefix
        if request.trusted and b"x-forwarded-prefix" in request.head.fields:
            prefix = request.header(b"x-forwarded-prefix")
        target = f"{request.path}?{request.query}" if request.query else request.path
        lines = [f"{request.method} {target} HTTP/1.1".encode("latin-1")]
        lines += [b"%b: %b" % header for header in request.head.passed_on(_NOT_UP)]
        if prefix:
            lines.append(b"X-Forwarded-Prefix: " + prefix.encode("latin-1"))
        if self._chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif b"content-length" in request.head.fields:
            lines.append(b"Content-Length: " + request.head.fields[b"content-length"])
        if self.upgrades:
            lines += [b"Connection: Upgrade", b"Upgrade: " + request.head.fields[b"upgrade"]]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    async def _connect(self) -> None:
        loop = self.client.loop
        try:
            _, upstream = await loop.create_connection(
                lambda: Upstream(self.gateway), "localhost", self.gateway.settings.upstream_port
            )
        except OSError as exc:
            self.fail(unavailable(f"The server does not answer on its port: {exc.strerror or exc}."))
            return
        if self._gone:
            upstream.close()
        else:
            self._attach(upstream)

    def _attach(self, upstream: Upstream) -> None:
        self._upstream = upstream
        upstream.serve(self)
        early, self._early = self._early, []
        upstream.write(self.head() + b"".join(early))
        if upstream.writable:
            self.client.pause(False)

    def _watch(self) -> None:
        limit = self.gateway.settings.timeout_seconds
        left = self._moved + limit - self.client.loop.time()
        if left > 0:
            self._watching = self.client.loop.call_later(left, self._watch)
        elif not self._gone:
            self.fail(Fault(504, "model_timeout", f"The server did not answer within {limit:g} s, the time limit."))

    def _leave(self) -> None:
        self._gone = True
        self.headed()
        self._early = []
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.exchange = None
            upstream.close()


class Upstream(asyncio.Protocol):
    """One connection to the user's server: an exchange at a time, or a tunnel after an upgrade."""

    def __init__(self, gateway: Gateway):
        self.exchange: Exchange | None = None
        self.writable = True
        self._gateway = gateway
        self._transport: Any = None
        self._buffer = b""
        self._framing: http11.Body | None = None
        self._reusable = False
        self._client: Any = None

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing() and not self._buffer

    def serve(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._framing = None

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def pause_writing(self) -> None:
        self.writable = False
        self._hold(True)

    def resume_writing(self) -> None:
        self.writable = True
        self._hold(False)

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            self._to_client(data)
            return
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        self._buffer = self._buffer + data if self._buffer else data
        try:
            while self._buffer and self.exchange is exchange and self._client is None:
                if not (self._read_head(exchange) if self._framing is None else self._read_body(exchange)):
                    break
        except http11.BadMessage as exc:
            if self._framing is None:
                exchange.fail(model_error(f"The server's answer is not HTTP as it must be: {exc}."))
            else:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._client is not None:
            self._gateway.tunnels.discard(self)
            self._client.transport.close()
            return
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        framing = self._framing
        if framing is not None and not framing.chunked and framing.length is None and exc is None:
            exchange.over(False)
        else:
            exchange.lost(framing is not None)

    def _read_head(self, exchange: Exchange) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > http11.MAX_HEAD_BYTES:
                raise http11.BadMessage("its header is too long")
            return False
        head = http11.parse_head(self._buffer[:end])
        status, http11_spoken = http11.parse_status_line(head.first)
        self._buffer = self._buffer[end + 4 :]
        if status == 101 and exchange.upgrades:
            self._tunnel(exchange, head)
            return False
        if status < 200:
            return True
        request = exchange.request
        framing = http11.response_body(head, request.method, status)
        length = head.fields.get(b"content-length")
        self._framing = framing
        self._reusable = http11_spoken and not http11.wants(head, b"close")
        exchange.headed()
        exchange.client.on_writable = self._resume_reading
        lines = b"".join(b"%b: %b\r\n" % header for header in head.passed_on(_NOT_DOWN))
        announced = int(length) if length is not None and not framing.chunked and status != 204 else None
        if framing.done and announced is None and request.method != "HEAD" and status != 304:
            announced = None if status == 204 else 0
        exchange.client.start_reply(request, status, lines, announced)
        if framing.done:
            exchange.over(self._reusable)
        return True

    def _read_body(self, exchange: Exchange) -> bool:
        assert self._framing is not None
        content, self._buffer = self._framing.feed(self._buffer)
        exchange.client.write_body(content)
        if self._framing.done:
            exchange.over(self._reusable)
        elif not exchange.client.writable:
            self._transport.pause_reading()
        return bool(self._buffer)

    def _tunnel(self, exchange: Exchange, head: http11.Head) -> None:
        """From here bytes go both ways untouched."""
        exchange.headed()
        client = self._client = exchange.client
        self._gateway.tunnels.add(self)
        lines = b"".join(b"%b: %b\r\n" % header for header in head.passed_on(_NOT_DOWN))
        lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.fields.get(b"upgrade", b"websocket")
        client.on_writable = self._resume_reading
        self.write(client.open_tunnel(exchange.request, 101, lines, self))
        self.exchange = None
        data, self._buffer = self._buffer, b""
        if data:
            self._to_client(data)

    def _to_client(self, data: bytes) -> None:
        self._client.transport.write(data)
        if not self._client.writable:
            self._transport.pause_reading()

    def _hold(self, held: bool) -> None:
        if self._client is not None:
            self._client.pause(held)
        elif self.exchange is not None:
            self.exchange.hold(held)

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
