"""Who asks: Hub tokens from the header, the Hub's OAuth cookie from browsers, and what their scopes allow."""

from __future__ import annotations

import re
from typing import Any

from jupyterhub.services.auth import HubOAuth, check_scopes
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from airhub.errors import Forbidden, RuntimeUnavailable, Unauthorized
from airhub.usecases.access import ADMIN, PREDICT, READ, WRITE, Actor

HEADER = re.compile(r"\s*(?:token|bearer)\s+(\S+)\s*", re.IGNORECASE)
ACCESS_SCOPES = {"access:services", "access:services!service=airhub"}
POWERS = {f"custom:airhub:{power}": power for power in (READ, WRITE, PREDICT, ADMIN)}


class AirHubAuth(HubOAuth):
    """The Hub's word on tokens and cookies; a token in the URL is no token."""

    def _get_token_url(self, handler: RequestHandler) -> str:
        return ""


def header_token(request: HTTPServerRequest) -> str | None:
    """Return the token of the ``Authorization`` header; null without one, empty when it is of another kind."""
    value = request.headers.get("Authorization")
    if value is None:
        return None
    found = HEADER.fullmatch(value)
    return found[1] if found else ""


async def actor_of_token(auth: AirHubAuth, token: str) -> Actor:
    """Return who a token belongs to. Raises ``Unauthorized``, or ``Forbidden`` without access to this service."""
    if not token or not token.isascii() or len(token) > 1000:
        raise _no_token()
    user = await _ask_hub(auth.user_for_token(token, sync=False))
    if user is None:
        raise _no_token()
    return _actor(user, cookie=False)


async def actor_of_request(auth: AirHubAuth, handler: RequestHandler) -> Actor:
    """Return who makes a request, by its header or else by its cookie."""
    token = header_token(handler.request)
    if token is not None:
        return await actor_of_token(auth, token)
    user = await _ask_hub(auth.get_user(handler, sync=False))
    if user is None:
        if auth._get_token_cookie(handler) is not None:
            raise Unauthorized(
                "The log-in cookie was not accepted: it has expired, or the request lacks the X-XSRFToken header. "
                "Reload the page to log in again."
            )
        raise _no_token()
    return _actor(user, cookie=True)


async def _ask_hub(asked: Any) -> dict[str, Any] | None:
    try:
        return await asked
    except HTTPError as exc:
        if exc.status_code in (401, 403, 404):
            return None
        raise RuntimeUnavailable("The Hub does not answer, so nobody can be recognised. Try again in a moment.") from exc
    except OSError as exc:
        raise RuntimeUnavailable("The Hub does not answer, so nobody can be recognised. Try again in a moment.") from exc


def _actor(user: dict[str, Any], cookie: bool) -> Actor:
    scopes = set(user.get("scopes", ()))
    if not check_scopes(ACCESS_SCOPES, scopes):
        raise Forbidden("This token lacks the scope access:services!service=airhub. Make one that has it on the Hub's token page.")
    granted = {POWERS[scope] for scope in scopes & POWERS.keys()}
    if user.get("admin") and (cookie or "admin:users" in scopes):
        granted.add(ADMIN)
    return Actor.of(user["name"], granted, tuple(user.get("groups") or ()))


def _no_token() -> Unauthorized:
    return Unauthorized(
        "A JupyterHub API token is needed, in the header `Authorization: token …`. Make one on the Hub's token page."
    )
