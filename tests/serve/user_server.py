"""A server as a user might bring one: echoes, streams, websockets; started by the gateway's tests."""

from __future__ import annotations

import asyncio
import os

from aiohttp import WSMsgType, web


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": body.decode("latin-1"),
        },
        headers={"Set-Cookie": "a=b", "X-Mine": "yes"},
    )


async def stream(request: web.Request) -> web.StreamResponse:
    """Answer each piece of the body as it comes."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece.upper())
    await response.write_eof()
    return response


async def big(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(64):
        await response.write(b"x" * 2**20)
    return response


async def size(request: web.Request) -> web.Response:
    return web.Response(body=b"%d" % sum([len(piece) async for piece in request.content.iter_any()]))


async def broken(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.abort()
    return response


async def drop(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def sleep(request: web.Request) -> web.Response:
    await asyncio.sleep(float(request.query["seconds"]))
    return web.Response(text="awake")


async def socket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    await ws.send_str(request.headers.get("Authorization", "none") + request.headers.get("Cookie", "none"))
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data[::-1])
        elif message.type is WSMsgType.TEXT:
            await ws.send_str(message.data[::-1])
    return ws


async def leave(request: web.Request) -> web.Response:
    os._exit(int(request.query["status"]))


def main() -> None:
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/stream", stream)
    app.router.add_get("/big", big)
    app.router.add_post("/size", size)
    app.router.add_get("/broken", broken)
    app.router.add_get("/drop", drop)
    app.router.add_get("/sleep", sleep)
    app.router.add_get("/ws", socket)
    app.router.add_get("/leave", leave)
    app.router.add_route("*", "/{path:.*}", echo)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), print=None)


if __name__ == "__main__":
    main()
