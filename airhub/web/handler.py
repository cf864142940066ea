"""Turns a route into a handler: who asks, may they, is it there, what do they say; then one use case."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from airhub.errors import MethodNotAllowed, NotFound
from airhub.usecases.access import Actor
from airhub.usecases.requests import parse
from airhub.web.base import BaseHandler
from airhub.web.routing import Call, Route

NOBODY = Actor("", frozenset())
ID_DIGITS = 18


class RouteHandler(BaseHandler):
    """Serves all methods of one path."""

    routes: dict[str, Route]
    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS")

    def initialize(self, services: Any, routes: dict[str, Route]) -> None:
        super().initialize(services)
        self.routes = routes

    async def get(self, *ids: str) -> None:
        await self._serve("GET", ids)

    async def head(self, *ids: str) -> None:
        await self._serve("GET", ids)

    async def post(self, *ids: str) -> None:
        await self._serve("POST", ids)

    async def patch(self, *ids: str) -> None:
        await self._serve("PATCH", ids)

    async def put(self, *ids: str) -> None:
        await self._serve("PUT", ids)

    async def delete(self, *ids: str) -> None:
        await self._serve("DELETE", ids)

    async def options(self, *ids: str) -> None:
        await self._serve("OPTIONS", ids)

    async def _serve(self, method: str, ids: tuple[str, ...]) -> None:
        route = self.routes.get(method)
        if route is None:
            allowed = sorted(self.routes)
            self.set_header("Allow", ", ".join(allowed))
            raise MethodNotAllowed(f"This path does not take {self.request.method}; it takes {', '.join(allowed)}.")
        actor = NOBODY
        if route.power is not None:
            actor = await self.actor()
            actor.require(route.power)
        call = Call(self.services, actor, self, tuple(_number(text) for text in ids), {})
        if route.exists is not None:
            await _maybe(route.exists(call))
        call.query = self.query(route.query)
        if route.body is not None:
            call.body = parse(route.body, self.optional_body() if route.body_optional else self.json_body())
        if not route.creates:
            await self._finish(route, call)
            return
        call.request_key = self.request_key(actor, f"{method} {route.path}")
        if call.request_key is None:
            await self._finish(route, call)
            return
        lock_name = (call.request_key.owner, call.request_key.route, call.request_key.key)
        async with _locks.setdefault(lock_name, asyncio.Lock()):
            await self._finish(route, call)
        if not _locks[lock_name].locked():
            _locks.pop(lock_name, None)

    async def _finish(self, route: Route, call: Call) -> None:
        result = await _maybe(route.call(call))
        if route.streams:
            return
        if route.status == 204:
            self.clear_header("Content-Type")
            self.set_status(204)
            self.finish()
            return
        self.answer(result, route.status)


_locks: dict[tuple[str, str, str], asyncio.Lock] = {}


async def _maybe(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= ID_DIGITS):
        raise NotFound("There is no such thing, or it is not yours.")
    return int(text)
