"""HTTP/1.1 as bytes: heads and body framing, strict about what two readers could understand differently."""

from __future__ import annotations

MAX_HEAD_BYTES = 64 * 1024
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TARGET = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF"
_ONCE = frozenset((b"content-length", b"transfer-encoding", b"host", b"authorization", b"x-airhub-secret"))
_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    )
)


class BadMessage(Exception):
    """Bytes that are no HTTP/1.1 message; ``status`` is what their sender is told."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class Head:
    """The start line and headers of one message. Names are lower-case bytes; ``headers`` keeps order and repeats."""

    __slots__ = ("first", "fields", "headers")

    def __init__(self, first: bytes, headers: list[tuple[bytes, bytes]], fields: dict[bytes, bytes]):
        self.first = first
        self.headers = headers
        self.fields = fields

    def passed_on(self, without: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
        """Return the headers that a gateway hands on: none that speak of this one connection, none of ``without``."""
        named = {name.strip().lower() for name in self.fields.get(b"connection", b"").split(b",")}
        return [
            (name, value)
            for name, value in self.headers
            if name not in _HOP and name not in named and name not in without
        ]


def parse_head(block: bytes) -> Head:
    """Parse a head without its final empty line; raise ``BadMessage`` for anything irregular."""
    lines = block.split(b"\r\n")
    count = len(lines) - 1
    if block.count(b"\n") != count or block.count(b"\r") != count or b"\0" in block:
        raise BadMessage("stray line ends or zero bytes in the header")
    headers = []
    fields: dict[bytes, bytes] = {}
    for index in range(1, count + 1):
        name, colon, value = lines[index].partition(b":")
        if not colon or not name or name.translate(None, _TOKEN):
            raise BadMessage("a header line is not 'name: value'")
        name = name.lower()
        value = value.strip(b" \t")
        headers.append((name, value))
        if name in fields:
            if name in _ONCE:
                raise BadMessage(f"the header {name.decode()} is there twice")
            value = fields[name] + b", " + value
        fields[name] = value
    return Head(lines[0], headers, fields)


def parse_request_line(line: bytes) -> tuple[str, str, str, bool]:
    """Split a request line into method, path, query and whether it is HTTP/1.1."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise BadMessage("the request line is not 'METHOD target HTTP/1.1'")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadMessage("only HTTP/1.1 and HTTP/1.0 are spoken here", 505 if version.startswith(b"HTTP/") else 400)
    if not method or method.translate(None, _TOKEN) or not target or target.translate(None, _TARGET):
        raise BadMessage("the method or the target has characters that it cannot have")
    text = target.decode("latin-1")
    if not text.startswith("/"):
        if text.lower().startswith(("http://", "https://")):
            text = "/" + text.split("/", 3)[3] if text.count("/") >= 3 else "/"
        elif not (text == "*" and method == b"OPTIONS"):
            raise BadMessage("the target is no path")
    path, _, query = text.partition("?")
    return method.decode(), path, query, version == b"HTTP/1.1"


def parse_status_line(line: bytes) -> tuple[int, bool]:
    """Return the status code of an answer and whether it is HTTP/1.1."""
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(code) != 3 or code.translate(None, _DIGITS):
        raise BadMessage("the answer's first line is no HTTP status line")
    return int(code), version == b"HTTP/1.1"


class Body:
    """The framing of one message's body: feed it what arrives, take the content and what comes after it.

    ``length`` is the bytes still to come, None for chunks or until the connection ends. ``done`` once it is whole.
    """

    __slots__ = ("length", "chunked", "done", "_pending", "_left", "_trailer")

    def __init__(self, length: int | None, chunked: bool):
        self.length = length
        self.chunked = chunked
        self.done = length == 0
        self._pending = b""
        self._left = 0
        self._trailer = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content in ``data`` and the bytes after the body's end."""
        if self.chunked:
            return self._feed_chunks(data)
        if self.length is None:
            return data, b""
        content, rest = data[: self.length], data[self.length :]
        self.length -= len(content)
        self.done = self.length == 0
        return content, rest

    def _feed_chunks(self, data: bytes) -> tuple[bytes, bytes]:
        """``_left`` counts a chunk's bytes with its line end, so that 2 or 1 left are of the line end."""
        data = self._pending + data if self._pending else data
        out = []
        position = 0
        while position < len(data):
            if self._left > 2:
                piece = data[position : position + self._left - 2]
                out.append(piece)
                position += len(piece)
                self._left -= len(piece)
                continue
            if self._left:
                wanted = b"\r\n"[2 - self._left :]
                have = data[position : position + self._left]
                if not wanted.startswith(have):
                    raise BadMessage("a chunk does not end where its size says")
                position += len(have)
                self._left -= len(have)
                continue
            end = data.find(b"\r\n", position)
            if end < 0:
                if len(data) - position > 4096:
                    raise BadMessage("a chunk's size line is too long")
                break
            line = data[position:end]
            position = end + 2
            if self._trailer:
                if not line:
                    self.done = True
                    self._pending = b""
                    return b"".join(out), data[position:]
                continue
            digits = line.partition(b";")[0].strip(b" \t")
            if not digits or len(digits) > 15 or digits.translate(None, _HEX) or b"\n" in line or b"\r" in line:
                raise BadMessage("a chunk's size is no number")
            size = int(digits, 16)
            if size:
                self._left = size + 2
            else:
                self._trailer = True
        self._pending = data[position:]
        return b"".join(out), b""


def request_body(head: Head, http11: bool) -> Body:
    """Return the framing of a request's body; two different framings in one request are refused."""
    encoding = head.fields.get(b"transfer-encoding")
    length = head.fields.get(b"content-length")
    if encoding is not None:
        if length is not None or not http11 or encoding.lower() != b"chunked":
            raise BadMessage("the body's framing is not clear: send Content-Length or 'Transfer-Encoding: chunked'")
        return Body(None, True)
    return Body(_length(length) if length is not None else 0, False)


def response_body(head: Head, method: str, status: int) -> Body:
    """Return the framing of an answer's body, which may last until the connection ends."""
    if method == "HEAD" or status in (204, 304) or status < 200:
        return Body(0, False)
    encoding = head.fields.get(b"transfer-encoding")
    if encoding is not None:
        if encoding.lower() != b"chunked":
            raise BadMessage("the answer has a transfer encoding that is not known here")
        return Body(None, True)
    length = head.fields.get(b"content-length")
    return Body(_length(length) if length is not None else None, False)


def _length(text: bytes) -> int:
    if not text or len(text) > 18 or text.translate(None, _DIGITS):
        raise BadMessage("Content-Length is no number")
    return int(text)


def wants(head: Head, word: bytes) -> bool:
    """True when the Connection header names ``word``."""
    value = head.fields.get(b"connection")
    return value is not None and word in (part.strip() for part in value.lower().split(b","))
