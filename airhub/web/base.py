"""The one base handler: who asks, what they send, and the one way in which errors are written."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import orjson
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from airhub.errors import (
    AirHubError,
    FieldError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    TooLarge,
)
from airhub.store import RequestKey
from airhub.usecases.access import Actor
from airhub.web.auth import actor_of_request
from airhub.web.routing import Query
from airhub.web.services import Services

MAX_BODY_BYTES = 4 << 20
MAX_KEY_CHARACTERS = 255


class BaseHandler(RequestHandler):
    """Answers in JSON; every error is the contract's body."""

    services: Services
    log: logging.Logger

    def initialize(self, services: Services) -> None:
        self.services = services
        self.log = services.log

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def check_xsrf_cookie(self) -> None:
        """Left to the Hub's authentication, which checks whenever a cookie is what identifies the user."""

    async def actor(self) -> Actor:
        """Return who asks. Raises ``Unauthorized`` or ``Forbidden``."""
        return await actor_of_request(self.services.auth, self)

    def json_body(self) -> Any:
        """Return the decoded JSON body. Raises ``InvalidRequest`` or ``TooLarge``."""
        return decode_json(self.request.body)

    def optional_body(self) -> Any:
        """Return the decoded body, an empty object where none was sent."""
        return decode_json(self.request.body) if self.request.body.strip() else {}

    def query(self, known: tuple[Query, ...]) -> dict[str, Any]:
        """Return the query parameters, checked and converted; unknown ones are an error."""
        return read_query(self.request, known)

    def request_key(self, actor: Actor, route: str) -> RequestKey | None:
        """Return the request's idempotency key with what it is for; null without the header."""
        key = self.request.headers.get("Idempotency-Key")
        if key is None:
            return None
        if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isprintable():
            raise InvalidRequest.of("Idempotency-Key", f"must have 1 to {MAX_KEY_CHARACTERS} printable characters")
        body = orjson.dumps(self.json_body(), option=orjson.OPT_SORT_KEYS)
        return RequestKey(actor.name, route, key, hashlib.sha256(body).hexdigest())

    def answer(self, body: Any, status: int = 200) -> None:
        """Write a JSON answer."""
        self.set_status(status)
        self.finish(body if isinstance(body, bytes) else to_json(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        body = error_body(error, status_code)
        self.set_status(int(body["status"]))
        self.set_header("Content-Type", "application/json; charset=utf-8")
        if body["status"] == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="airhub"')
        self.finish(to_json(body))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        if isinstance(value, AirHubError) and value.status < 500:
            return
        if isinstance(value, HTTPError):
            return
        self.log.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))


class NotFoundHandler(BaseHandler):
    """Answers for paths that lead nowhere."""

    async def prepare(self) -> None:
        raise NotFound("There is nothing at this path; openapi.json lists every route.")


def error_body(error: BaseException | None, status_code: int) -> dict[str, Any]:
    """Return the contract's body for whatever was raised; an unknown error's text is not shown."""
    if isinstance(error, AirHubError):
        return error.as_dict()
    if isinstance(error, HTTPError) and error.status_code < 500:
        known = {404: NotFound, 405: MethodNotAllowed, 413: TooLarge, 400: InvalidRequest}
        words = {
            404: "There is nothing at this path; openapi.json lists every route.",
            405: "This path does not take that method; openapi.json lists every route.",
            413: "The body is too large.",
            400: "The request cannot be read.",
        }
        kind = known.get(error.status_code)
        if kind is not None:
            return kind(words[error.status_code]).as_dict()
        return {"status": error.status_code, "code": "invalid_request", "message": error.reason or "Refused.", "errors": []}
    return {
        "status": 500,
        "code": "internal",
        "message": "Something went wrong inside AirHub; its log says what. Nothing of yours is lost.",
        "errors": [],
    }


def decode_json(data: bytes) -> Any:
    if len(data) > MAX_BODY_BYTES:
        raise TooLarge(f"The body has {len(data)} bytes; at most {MAX_BODY_BYTES} are taken here.")
    if not data.strip():
        raise InvalidRequest("The body is empty; a JSON object is needed.")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"The body is not JSON: {exc}.") from exc


def to_json(body: Any) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS, default=str)


def read_query(request: HTTPServerRequest, known: tuple[Query, ...]) -> dict[str, Any]:
    """Convert a request's query parameters by what is known of them."""
    by_name = {parameter.name: parameter for parameter in known}
    values: dict[str, Any] = {parameter.name: parameter.default for parameter in known}
    for name, raw in _decoded(request.query_arguments).items():
        parameter = by_name.get(name)
        if parameter is None:
            have = ", ".join(by_name) or "none"
            raise InvalidRequest(f"{name} is not a query parameter here; known: {have}.",
                                 [FieldError(name, "is not a known query parameter")])
        if not parameter.repeated and len(raw) > 1:
            raise InvalidRequest.of(name, "is given more than once")
        converted = [parameter.read(text) for text in raw]
        values[name] = converted if parameter.repeated else converted[0]
    return values


def _decoded(arguments: Mapping[str, list[bytes]]) -> dict[str, list[str]]:
    try:
        return {name: [value.decode("utf-8") for value in values] for name, values in arguments.items()}
    except UnicodeDecodeError as exc:
        raise InvalidRequest("The query is not UTF-8 text.") from exc
