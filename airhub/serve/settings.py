"""What the server is told by its environment; read once at start by ``server``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

PRIVATE = ("AIRHUB_SERVE_SECRET", "AIRHUB_SERVE_KEYS_FILE")
"""Variables that the model's own code does not get."""

KEY_ROUTE = "/airhub-endpoints/"
MIB = 1024 * 1024

T = TypeVar("T", int, float)


class BadSettings(Exception):
    """An environment variable cannot be used; the message names it and says what it takes."""


@dataclass(frozen=True)
class Settings:
    """The server's settings. Every field is the environment variable that ``from_environment`` names."""

    code: str
    model: str | None
    inference_id: str
    name: str
    host: str
    port: int
    prefixes: tuple[str, ...]
    keys_file: str | None
    secret: str
    timeout_seconds: float
    concurrency: int | None
    queue: int
    max_request_bytes: int
    max_response_bytes: int
    drain_seconds: float
    command: tuple[str, ...]
    upstream_port: int

    @property
    def guarded(self) -> bool:
        """True when requests need the secret or a key."""
        return bool(self.secret or self.keys_file)


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; raise ``BadSettings`` with the variable's name where one is wrong."""
    env = os.environ if environ is None else environ
    inference_id = env.get("AIRHUB_INFERENCE_ID", "")
    prefixes = [prefix.strip() for prefix in env.get("AIRHUB_SERVE_PREFIXES", "").split(",")]
    if inference_id:
        prefixes.append(f"{KEY_ROUTE}{inference_id}")
    port = _number(env, "AIRHUB_SERVE_PORT", 8080, int, 0, 65535)
    command = _command(env.get("AIRHUB_SERVE_COMMAND", ""))
    upstream_port = _number(env, "AIRHUB_SERVE_UPSTREAM_PORT", 0, int, 0, 65535)
    if command and not upstream_port:
        raise BadSettings("AIRHUB_SERVE_UPSTREAM_PORT is missing: where AIRHUB_SERVE_COMMAND listens")
    if upstream_port and upstream_port == port:
        raise BadSettings(f"AIRHUB_SERVE_UPSTREAM_PORT and AIRHUB_SERVE_PORT are both {port}; they must differ")
    concurrency = _number(env, "AIRHUB_SERVE_CONCURRENCY", 0, int, 0, 4096)
    return Settings(
        code=env.get("AIRHUB_CODE") or "/data/code",
        model=env.get("AIRHUB_MODEL") or None,
        inference_id=inference_id,
        name=env.get("AIRHUB_INFERENCE_NAME") or inference_id or "model",
        host=env.get("AIRHUB_SERVE_HOST") or "0.0.0.0",
        port=port,
        prefixes=_prefixes(prefixes),
        keys_file=env.get("AIRHUB_SERVE_KEYS_FILE") or None,
        secret=env.get("AIRHUB_SERVE_SECRET", ""),
        timeout_seconds=_number(env, "AIRHUB_SERVE_TIMEOUT_SECONDS", 60.0, float, 0.01, 86400.0),
        concurrency=concurrency or None,
        queue=_number(env, "AIRHUB_SERVE_QUEUE", 100, int, 0, 1_000_000),
        max_request_bytes=_number(env, "AIRHUB_SERVE_MAX_REQUEST_BYTES", 64 * MIB, int, 1, 1 << 40),
        max_response_bytes=_number(env, "AIRHUB_SERVE_MAX_RESPONSE_BYTES", 64 * MIB, int, 1, 1 << 40),
        drain_seconds=_number(env, "AIRHUB_SERVE_DRAIN_SECONDS", 30.0, float, 0.0, 86400.0),
        command=command,
        upstream_port=upstream_port,
    )


def environment_of_model(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for the model's own process, without what is the server's alone."""
    env = os.environ if environ is None else environ
    return {name: value for name, value in env.items() if name not in PRIVATE}


def _prefixes(prefixes: list[str]) -> tuple[str, ...]:
    """Return the prefixes with one leading slash each, the longest first."""
    words = {prefix.strip("/") for prefix in prefixes}
    return tuple(sorted((f"/{word}" for word in words if word), key=len, reverse=True))


def _command(text: str) -> tuple[str, ...]:
    """Take a JSON list of words, or a line for the shell."""
    if not text.strip():
        return ()
    if not text.lstrip().startswith("["):
        return ("/bin/sh", "-c", text)
    try:
        words = json.loads(text)
    except ValueError as exc:
        raise BadSettings(f"AIRHUB_SERVE_COMMAND starts like a JSON list but is none: {exc}") from exc
    if not words or not all(isinstance(word, str) for word in words):
        raise BadSettings("AIRHUB_SERVE_COMMAND takes a JSON list of strings or one line for the shell")
    return tuple(words)


def _number(env: Mapping[str, str], name: str, default: T, kind: Callable[[str], T], low: T, high: T) -> T:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError as exc:
        raise BadSettings(f"{name} is {text!r}, which is no number") from exc
    if not low <= value <= high:
        raise BadSettings(f"{name} is {text}, which is not between {low} and {high}")
    return value
