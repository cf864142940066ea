"""A server of the user's own behind the gateway: HTTP with streaming both ways, websockets, and its end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .conftest import Serving, Start, free_port, until
from .test_access import write_keys

SERVER = Path(__file__).with_name("user_server.py")
SECRET = {"X-AirHub-Secret": "the-secret"}


def start_gateway(start: Start, **settings: Any) -> Serving:
    given = {
        "AIRHUB_SERVE_COMMAND": json.dumps([sys.executable, str(SERVER)]),
        "AIRHUB_SERVE_UPSTREAM_PORT": free_port(),
        "AIRHUB_SERVE_SECRET": "the-secret",
        "AIRHUB_INFERENCE_ID": 7,
    }
    return start(None, **{**given, **settings})


def test_requests_are_handed_on_without_credentials(start: Start, tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", "alpha")
    server = start_gateway(start, AIRHUB_SERVE_KEYS_FILE=tmp_path / "keys.json")
    headers = {"Authorization": "Bearer alpha", "Cookie": "c=d", "X-Other": "o", "X-Forwarded-Prefix": "/forged"}
    answer = server.call("PUT", "/airhub-endpoints/7/some/p%20th?q=1&r", "hällo".encode(), headers)
    assert answer.status == 200
    got = answer.json()
    sent = "hällo".encode().decode("latin-1")
    assert (got["method"], got["path"], got["body"]) == ("PUT", "/some/p%20th?q=1&r", sent)
    assert got["headers"]["x-forwarded-prefix"] == "/airhub-endpoints/7"
    assert got["headers"]["x-other"] == "o"
    assert not {"authorization", "cookie", "x-airhub-secret"} & set(got["headers"])
    assert answer.headers["x-mine"] == "yes"
    assert "set-cookie" not in answer.headers
    told = {**SECRET, "X-Forwarded-Prefix": "/services/airhub/endpoints/7"}
    assert server.call("GET", "/", None, told).json()["headers"]["x-forwarded-prefix"] == told["X-Forwarded-Prefix"]
    assert server.call("GET", "/").status == 401
    assert server.call("GET", "/airhub-endpoints/7/", None, {"Authorization": "Bearer x"}).status == 401


def test_health_is_the_gateways_without_a_prefix_and_the_users_behind_one(start: Start) -> None:
    server = start_gateway(start)
    assert server.call("GET", "/health").json() == {"status": "ok"}
    assert server.call("GET", "/airhub-endpoints/7/health", None, SECRET).json()["path"] == "/health"
    assert server.call("GET", "/airhub-endpoints/7/health").status == 401
    told = {**SECRET, "X-Forwarded-Prefix": "/p"}
    assert server.call("GET", "/metrics", None, told).json()["path"] == "/metrics"
    answer = server.call("HEAD", "/x", None, SECRET)
    assert (answer.status, answer.body) == (200, b"")


def test_bodies_stream_both_ways(start: Start) -> None:
    async def talk(port: int) -> list[bytes]:
        gate: asyncio.Queue[bytes] = asyncio.Queue()

        async def body() -> Any:
            while piece := await gate.get():
                yield piece

        got = []
        await gate.put(b"one")
        async with aiohttp.ClientSession() as session:
            async with session.post(f"http://127.0.0.1:{port}/stream", data=body(), headers=SECRET) as answer:
                for piece in (b"two", b"three", b""):
                    got.append(await answer.content.readany())
                    await gate.put(piece)
        return got

    server = start_gateway(start)
    assert asyncio.run(asyncio.wait_for(talk(server.port), 20)) == [b"ONE", b"TWO", b"THREE"]


def test_big_bodies_pass_and_memory_stays_flat(start: Start) -> None:
    server = start_gateway(start)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/big", headers=SECRET)
    answer = connection.getresponse()
    total = 0
    while part := answer.read(2**20):
        total += len(part)
        time.sleep(0.002)
    connection.close()
    assert total == 64 * 2**20
    data = os.urandom(30 * 2**20)
    assert server.call("POST", "/size", data, SECRET).body == b"%d" % len(data)
    peak = next(line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    assert int(peak.split()[1]) < 80 * 1024


def test_too_large_uploads_are_413(start: Start) -> None:
    server = start_gateway(start, AIRHUB_SERVE_MAX_REQUEST_BYTES=1000)
    assert server.call("POST", "/x", b"x" * 2_000_000, SECRET).status == 413
    pieces: Any = iter([b"x" * 600] * 3)
    assert server.call("POST", "/x", pieces, SECRET).status == 413
    assert server.call("POST", "/x", b"x" * 1000, SECRET).status == 200


def test_websockets_pass(start: Start) -> None:
    async def talk(port: int) -> list[Any]:
        headers = {**SECRET, "Cookie": "c=d", "Authorization": "Bearer x"}
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"http://127.0.0.1:{port}/ws", headers=headers) as ws:
                got = [await ws.receive_str()]
                await ws.send_str("abc")
                got.append(await ws.receive_str())
                await ws.send_bytes(bytes(range(256)) * 4000)
                got.append(await ws.receive_bytes() == (bytes(range(256)) * 4000)[::-1])
                return got

    server = start_gateway(start)
    assert asyncio.run(asyncio.wait_for(talk(server.port), 20)) == ["nonenone", "cba", True]
    until(lambda: "airhub_serve_in_flight 0" in server.call("GET", "/metrics", None, SECRET).body.decode())


def test_a_server_that_fails_is_told_apart(start: Start) -> None:
    server = start_gateway(start, AIRHUB_SERVE_TIMEOUT_SECONDS=0.5)
    answer = server.call("GET", "/sleep?seconds=3", None, SECRET)
    assert (answer.status, answer.json()["code"]) == (504, "model_timeout")
    answer = server.call("GET", "/drop", None, SECRET)
    assert (answer.status, answer.json()["code"]) == (500, "model_error")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        server.call("GET", "/broken", None, SECRET)
    assert server.call("GET", "/fine", None, SECRET).status == 200


def test_more_than_may_be_open_is_refused_at_once(start: Start) -> None:
    server = start_gateway(start, AIRHUB_SERVE_CONCURRENCY=1, AIRHUB_SERVE_QUEUE=1)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(server.call, "GET", "/sleep?seconds=1", None, SECRET) for _ in range(4)]
        statuses = sorted(call.result().status for call in calls)
    assert statuses == [200, 200, 503, 503]


def test_requests_wait_until_the_server_listens(start: Start) -> None:
    port = free_port()
    command = f"sleep 1; exec {sys.executable} {SERVER}"
    server = start_gateway(start, AIRHUB_SERVE_COMMAND=command, AIRHUB_SERVE_UPSTREAM_PORT=port, ready=False)
    until(lambda: listens(server))
    assert server.call("GET", "/v2/health/ready").status == 503
    assert server.call("POST", "/stream", "early", SECRET).body == b"EARLY"


def test_the_gateway_ends_with_the_server(start: Start) -> None:
    server = start_gateway(start)
    server.call("GET", "/leave?status=9", None, SECRET)
    assert server.process.wait(10) == 9
    server = start_gateway(start, AIRHUB_SERVE_COMMAND='["/does/not/exist"]', ready=False)
    assert server.process.wait(10) == 127
    server = start_gateway(start, AIRHUB_SERVE_COMMAND="exit 0", ready=False)
    assert server.process.wait(10) == 1


def test_sigterm_finishes_requests_and_takes_the_server_along(start: Start) -> None:
    server = start_gateway(start)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(server.call, "GET", "/sleep?seconds=1", None, SECRET)
        until(lambda: "airhub_serve_in_flight 1" in server.call("GET", "/metrics", None, SECRET).body.decode())
        child = server.worker_pid()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.call("GET", "/health").status == 503)
        assert server.call("GET", "/x", None, SECRET).status == 503
        assert running.result().body == b"awake"
    assert server.process.wait(10) == 0
    assert not Path(f"/proc/{child}").exists()


def test_a_command_needs_its_port(start: Start) -> None:
    server = start_gateway(start, AIRHUB_SERVE_UPSTREAM_PORT="", ready=False)
    assert server.process.wait(10) == 2
    assert "AIRHUB_SERVE_UPSTREAM_PORT" in server.text()


def listens(server: Serving) -> bool:
    try:
        return server.call("GET", "/v2/health/live").status == 200
    except OSError:
        return False
