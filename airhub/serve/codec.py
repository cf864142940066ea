"""JSON in and out of the model: orjson where the image has it, arrays as nested lists, NaN as null."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import uuid
from typing import Any

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]


class NotJson(TypeError):
    """A value has no JSON form; the message names its type."""


def loads(data: Any) -> Any:
    """Parse JSON bytes; raise ``ValueError`` where they are none."""
    if orjson is not None:
        return orjson.loads(data)
    try:
        return json.loads(str(data, "utf-8"), parse_constant=_no_constant)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def dumps(value: Any) -> bytes:
    """Return the value as JSON; raise ``NotJson`` naming the type that has no JSON form."""
    if orjson is not None:
        try:
            return orjson.dumps(value, default=plain, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as exc:
            if isinstance(exc.__cause__, NotJson):
                raise exc.__cause__ from None
    # Keys that are numbers and integers beyond 64 bits are for the standard library too.
    try:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode("utf-8", "replace")
    except NotJson:
        raise
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotJson(f"{type(value).__name__} ({exc})") from exc


def plain(value: Any) -> Any:
    """Turn one value that JSON does not know into one that it knows, or raise ``NotJson``."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, uuid.UUID):
        return str(value)
    raise NotJson(type_name(value))


def type_name(value: Any) -> str:
    """Name a value's type as its owner would: ``set``, ``torch.device``."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _finite(value: Any) -> Any:
    """Copy a value into what ``json`` writes, with null for numbers that JSON has no form for."""
    if isinstance(value, enum.Enum):
        return _finite(value.value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return _finite(plain(value))


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, (int, float)):
        return str(key)
    item = getattr(key, "item", None)
    if callable(item):
        return _key(item())
    raise NotJson(f"dict with a key of type {type_name(key)}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
