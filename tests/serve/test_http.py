"""HTTP as bytes: requests in pieces, several at once, and what two readers could understand differently."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airhub.serve import http11

from .conftest import Serving, Start


def exchange(server: Serving, data: bytes, pieces: int = 0) -> bytes:
    """Send bytes, in pieces of a size if one is given, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(0, len(data), pieces or len(data)):
            client.sendall(data[position : position + (pieces or len(data))])
        received = b""
        while True:
            part = client.recv(65536)
            if not part:
                return received
            received += part


def post(body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST /predict HTTP/" + version, b"Host: x", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


BODY = b'{"inputs": 5}'


def test_requests_in_pieces_and_several_at_once(start: Start) -> None:
    server = start()
    length = b"Content-Length: %d" % len(BODY)
    chunked = b"5;x=y\r\n" + BODY[:5] + b"\r\n8\r\n" + BODY[5:] + b"\r\n0\r\nTrailer: 1\r\n\r\n"
    many = post(BODY, length) * 3 + post(chunked, b"Transfer-Encoding: chunked")
    many += post(BODY, length, b"Connection: close")
    for pieces in (0, 1, 7):
        answers = exchange(server, many, pieces)
        assert answers.count(b"HTTP/1.1 200 OK") == 5
        assert answers.count(b'{"outputs":5}') == 5
    assert exchange(server, post(BODY, length, version=b"1.0")).endswith(b'{"outputs":5}')


def test_100_continue_is_answered(start: Start) -> None:
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(post(b"", b"Content-Length: %d" % len(BODY), b"Expect: 100-continue", b"Connection: close"))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
        post(BODY, b"Content-Length: 13", b"Content-Length: 13"),
        post(BODY, b"Content-Length: +13"),
        post(BODY, b"Content-Length: 13", b"Transfer-Encoding: chunked"),
        post(BODY, b"Transfer-Encoding: gzip, chunked"),
        post(b"zz\r\n", b"Transfer-Encoding: chunked"),
        post(b"-1\r\n", b"Transfer-Encoding: chunked"),
        post(b"2\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
        post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", version=b"1.0"),
    ],
)
def test_irregular_requests_are_refused_and_the_connection_ended(start: Start, data: bytes) -> None:
    server = start()
    answer = exchange(server, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"431", b"505")
    assert b"Connection: close" in head
    assert json.loads(body)["code"] == "invalid_request"
    assert server.predict(1).status == 200


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_chunks_are_read_alike_however_they_arrive(parts: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\nnext"
    body = http11.Body(None, True)
    content, rest, position = b"", b"", 0
    for index in range(1000):
        size = cuts[index % len(cuts)]
        data = wire[position : position + size]
        position += size
        if body.done:
            rest += data
        else:
            piece, after = body.feed(data)
            content, rest = content + piece, rest + after
        if position >= len(wire):
            break
    assert body.done
    assert (content, rest) == (b"".join(parts), b"next")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (http11.parse_head, http11.parse_request_line, http11.parse_status_line, http11.Body(None, True).feed):
        try:
            read(data)
        except http11.BadMessage:
            pass
