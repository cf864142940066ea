"""Routes as data: what each takes and gives. Handlers and ``openapi.json`` are both made from it, so it is true."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from airhub.errors import InvalidRequest

TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Query:
    """One query parameter."""

    name: str
    kind: str = "string"
    """``string``, ``integer``, ``number`` or ``boolean``."""
    description: str = ""
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    repeated: bool = False
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """Convert the text of a request. Raises ``InvalidRequest``."""
        value = self._convert(text)
        if self.minimum is not None and value < self.minimum:
            raise InvalidRequest.of(self.name, f"must be at least {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise InvalidRequest.of(self.name, f"must be at most {self.maximum:g}")
        if self.choices and value not in self.choices:
            raise InvalidRequest.of(self.name, f"must be one of {', '.join(self.choices)}")
        return value

    def _convert(self, text: str) -> Any:
        if self.kind == "integer":
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
                raise InvalidRequest.of(self.name, "must be a whole number")
            return int(text)
        if self.kind == "number":
            if not re.fullmatch(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", text):
                raise InvalidRequest.of(self.name, "must be a number")
            return float(text)
        if self.kind == "boolean":
            if text.lower() not in TRUE | FALSE:
                raise InvalidRequest.of(self.name, "must be true or false")
            return text.lower() in TRUE
        if "\0" in text:
            raise InvalidRequest.of(self.name, "must not contain NUL")
        return text

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": self.kind}
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.default is not None:
            schema["default"] = self.default
        return {"type": "array", "items": schema} if self.repeated else schema


@dataclass
class Call:
    """One request on its way to a use case."""

    services: Any
    actor: Any
    handler: Any
    ids: tuple[int, ...]
    query: dict[str, Any]
    body: Any = None
    request_key: Any = None


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    """With ``{id}`` for each number."""
    summary: str
    call: Callable[[Call], Awaitable[Any] | Any]
    power: str | None
    """What the token must allow; null: nothing, and no token is needed."""
    tag: str = ""
    status: int = 200
    query: tuple[Query, ...] = ()
    body: type[BaseModel] | None = None
    body_optional: bool = False
    exists: Callable[[Call], Any] | None = None
    """Raises ``NotFound`` before the query and the body are looked at."""
    answer: str | None = None
    """Name of the answer's schema in ``openapi.json``; null when it is not JSON."""
    media_type: str = "application/json"
    upload: bool = False
    streams: bool = False
    """``call`` writes the answer itself, by ``call.handler``."""
    creates: bool = field(default=False)
    """Takes an ``Idempotency-Key``."""

    @property
    def pattern(self) -> str:
        """Return the path as a regular expression; an id that is no number matches too, and is a 404."""
        return re.sub(r"\{\w+\}", "([^/]+)", self.path)
