"""Every error that AirHub raises on purpose; web, command line and Hub turn them into answers.

::

    AirHubError                      internal             500
    ├── Unauthorized                 unauthorized         401
    ├── Forbidden                    forbidden            403
    │   └── QuotaExceeded            quota_exceeded       403
    ├── NotFound                     not_found            404
    ├── MethodNotAllowed             method_not_allowed   405
    ├── InvalidState                 invalid_state        409
    │   └── InvalidTransition        invalid_state        409   (the life cycle has no such row)
    ├── Conflict                     conflict             409
    ├── NotSupported                 not_supported        409
    ├── TooLarge                     too_large            413
    ├── InvalidRequest               invalid_request      422
    ├── RateLimited                  rate_limited         429
    ├── ModelError                   model_error          500   (the user's predict raised)
    ├── RuntimeUnavailable           runtime_unavailable  503
    │   ├── ImageMissing             image_missing        503   (reason of a failed job)
    │   ├── GpuUnavailable           gpu_unavailable      503   (reason of a failed job)
    │   └── PathChanged              path_changed         503   (reason of a failed job)
    └── ModelTimeout                 model_timeout        504
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One field of a request that is wrong, and why."""

    field: str
    message: str

    def as_dict(self) -> dict[str, str]:
        return {"field": self.field, "message": self.message}


class AirHubError(Exception):
    """An error with a stable ``code``, an HTTP ``status`` and a message that the reader can act on."""

    code = "internal"
    status = 500

    def __init__(self, message: str, errors: Iterable[FieldError] = ()):
        super().__init__(message)
        self.message = message
        self.errors = tuple(errors)

    def as_dict(self) -> dict[str, object]:
        """Return the one error body of the HTTP contract."""
        return {
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "errors": [error.as_dict() for error in self.errors],
        }


class Unauthorized(AirHubError):
    code = "unauthorized"
    status = 401


class Forbidden(AirHubError):
    code = "forbidden"
    status = 403


class QuotaExceeded(Forbidden):
    code = "quota_exceeded"


class NotFound(AirHubError):
    code = "not_found"
    status = 404


class MethodNotAllowed(AirHubError):
    code = "method_not_allowed"
    status = 405


class InvalidState(AirHubError):
    code = "invalid_state"
    status = 409


class InvalidTransition(InvalidState):
    """The life cycle has no row for this pair of status and event."""


class Conflict(AirHubError):
    code = "conflict"
    status = 409


class NotSupported(AirHubError):
    code = "not_supported"
    status = 409


class TooLarge(AirHubError):
    code = "too_large"
    status = 413


class InvalidRequest(AirHubError):
    code = "invalid_request"
    status = 422

    @classmethod
    def of(cls, field: str, message: str) -> InvalidRequest:
        """Build the error of one wrong field; its message is the sentence too."""
        return cls(f"{field}: {message}", [FieldError(field, message)])


class RateLimited(AirHubError):
    code = "rate_limited"
    status = 429


class ModelError(AirHubError):
    code = "model_error"
    status = 500


class RuntimeUnavailable(AirHubError):
    """The runtime cannot do it now. ``reason`` is the job's reason when it fails for this."""

    code = "runtime_unavailable"
    status = 503
    reason = "engine_lost"


class ImageMissing(RuntimeUnavailable):
    reason = "image_missing"


class GpuUnavailable(RuntimeUnavailable):
    reason = "gpu_unavailable"


class PathChanged(RuntimeUnavailable):
    reason = "path_changed"


class ModelTimeout(AirHubError):
    code = "model_timeout"
    status = 504
