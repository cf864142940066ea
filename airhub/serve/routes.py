"""What model and gateway share: who may pass, which prefix goes, what is counted, what health and metrics say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .connection import Request
from .faults import Fault, unavailable
from .keys import Guard
from .metrics import Metrics
from .settings import KEY_ROUTE, MIB, Settings

log = logging.getLogger("airhub.serve")
HEALTH = ("/health", "/v2/health/live", "/v2/health/ready")
_OWN = frozenset((*HEALTH, "/metrics"))


class Base:
    """The part of an application that does not depend on what answers behind it."""

    def __init__(self, settings: Settings, end: Callable[[int], None]):
        self.settings = settings
        self.max_request_bytes = settings.max_request_bytes
        self.metrics = Metrics()
        self.draining = False
        self._end = end
        self._guard = Guard(settings.secret, settings.keys_file)
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._held = 0
        self._may_hold = max(256 * MIB, 2 * settings.max_request_bytes)

    @property
    def ready(self) -> bool:
        raise NotImplementedError

    @property
    def in_work(self) -> bool:
        """True while a request that was let in has no answer yet."""
        return self._open > 0

    @property
    def in_flight(self) -> int:
        raise NotImplementedError

    @property
    def queued(self) -> int:
        raise NotImplementedError

    @property
    def restarts(self) -> int:
        """How often what answers has been started again."""
        return 0

    def drain(self) -> None:
        """Answer every new request with 503 from now on."""
        self.draining = True

    def may_hold(self, size: int) -> bool:
        """Reserve memory for a large body, unless others have it all."""
        if self._held and self._held + size > self._may_hold:
            return False
        self._held += size
        return True

    def let_go(self, size: int) -> None:
        self._held -= size

    def admit(self, request: Request) -> bool:
        """Check the caller and take the prefix off the path; False when the request has been answered already."""
        by_key = False
        head = request.head
        request.trusted = not self.settings.guarded or self._guard.trusts(head)
        for prefix in self.settings.prefixes:
            path = request.path
            if path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == "/"):
                request.prefix = prefix
                request.path = path[len(prefix) :] or "/"
                by_key = prefix.startswith(KEY_ROUTE)
                break
        path = request.path
        request.open_inference = path.startswith("/v2")
        own = path in _OWN and self.answers_itself(request)
        open_to_all = own and path != "/metrics" and not by_key
        if not (request.trusted or open_to_all or self._guard.knows(head)):
            request.fail(
                Fault(
                    401,
                    "unauthorized",
                    "An endpoint key is needed: send 'Authorization: Bearer KEY' with a key of this endpoint.",
                    headers={"WWW-Authenticate": 'Bearer realm="endpoint"'},
                )
            )
            return False
        if own:
            return True
        if self.draining:
            request.fail(unavailable("This replica is being stopped. Try again."))
            return False
        request.counted = True
        self._open += 1
        return True

    def answers_itself(self, request: Request) -> bool:
        """True when health and metrics are this server's own to answer, not those of a server behind it."""
        return True

    def finished(self, request: Request) -> None:
        """Count a request that is over, answered or given up."""
        if request.counted:
            request.counted = False
            self._open -= 1
            self.metrics.count(request.status or 499, self._loop.time() - request.arrived)

    def answer_own(self, request: Request) -> None:
        """Answer health and metrics."""
        if request.method not in ("GET", "HEAD"):
            request.fail(not_allowed(request, ("GET", "HEAD")))
        elif request.path == "/metrics":
            text = self.metrics.text(self.in_flight, self.queued, self.restarts, self.ready)
            request.reply(200, text, b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n")
        elif request.path == "/v2/health/live":
            request.reply(200, b'{"live":true}')
        elif self.ready and not self.draining:
            request.reply(200, b'{"ready":true}' if request.open_inference else b'{"status":"ok"}')
        else:
            doing = "stopped" if self.draining else "started"
            request.fail(unavailable(f"This replica is being {doing}."))


def not_allowed(request: Request, methods: tuple[str, ...]) -> Fault:
    message = f"{request.method} is not possible here; possible: {', '.join(methods)}."
    return Fault(405, "method_not_allowed", message, headers={"Allow": ", ".join((*methods, "OPTIONS"))})
