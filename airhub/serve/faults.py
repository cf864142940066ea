"""The errors that the server answers with, in the one error body of AirHub's HTTP contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import codec

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Fault(Exception):
    """An answer that is not the model's: ``status``, a stable ``code``, a sentence, and headers where it needs some."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        errors: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    def body(self, open_inference: bool = False) -> bytes:
        """Return the JSON body; clients of the Open Inference Protocol also look for ``error``."""
        body: dict[str, Any] = {
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "errors": [{"field": field, "message": message} for field, message in self.errors],
        }
        if open_inference:
            body["error"] = self.message
        return codec.dumps(body)


def invalid(field: str, message: str) -> Fault:
    """Build the 422 of one wrong field."""
    return Fault(422, "invalid_request", f"{field}: {message}", [(field, message)])


def unreadable(message: str) -> Fault:
    """Build the 422 of a body that is to blame as a whole."""
    return Fault(422, "invalid_request", message)


def model_error(message: str) -> Fault:
    return Fault(500, "model_error", message)


def too_large(message: str) -> Fault:
    return Fault(413, "too_large", message)


def unavailable(message: str, retry_seconds: int = 1) -> Fault:
    return Fault(503, "runtime_unavailable", message, headers={"Retry-After": str(retry_seconds)})
