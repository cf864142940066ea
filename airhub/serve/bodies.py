"""How a call's body becomes ``inputs`` and how ``outputs`` become an answer, by content type."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import codec, frames, tensors
from .faults import Fault, invalid, unreadable

NPY = "application/x-npy"
BINARY_TYPES = ("image/", NPY, "application/octet-stream")


class Answer(NamedTuple):
    """A body and its header lines; no lines mean JSON."""

    headers: bytes
    body: bytes


@dataclass(frozen=True)
class ModelCall:
    """What ``predict`` gets, and how its outputs are written for this caller."""

    inputs: Any
    write: Callable[[Any], Answer]


def read_call(frame: frames.Frame) -> ModelCall:
    """Read one call; raise the 422 that says what is wrong with it."""
    if frame.code == frames.PREDICT:
        return ModelCall(_json_inputs(frame.body), _write_json)
    meta = json.loads(frame.meta)
    if frame.code == frames.INFER:
        return tensors_call(meta, frame.body)
    write = _write_npy if NPY in meta["accept"] else _write_json
    kind = meta["type"]
    if kind == NPY:
        return ModelCall(_read_npy(frame.body), write)
    if kind.startswith("image/"):
        return ModelCall(_read_image(frame.body, kind), write)
    if kind == "application/octet-stream":
        return ModelCall(frame.body, write)
    return ModelCall(_json_inputs(frame.body), write)


def tensors_call(meta: dict[str, Any], body: bytes) -> ModelCall:
    """Read a call of the Open Inference Protocol."""
    request = tensors.read_request(body, meta["header_length"])

    def write(outputs: Any) -> Answer:
        data, header_length = tensors.write_response(request, meta["name"], meta["version"], outputs)
        if header_length is None:
            return Answer(b"", data)
        lines = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {header_length}\r\n"
        return Answer(lines.encode(), data)

    return ModelCall(request.inputs, write)


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object, or raise the 422 that says why not."""
    try:
        value = codec.loads(body)
    except ValueError as exc:
        raise unreadable(f"The body is not JSON: {exc}.") from exc
    if not isinstance(value, dict):
        raise unreadable('The body is not a JSON object: send {"inputs": …}.')
    return value


def _json_inputs(body: bytes) -> Any:
    value = read_object(body)
    if len(value) == 1 and "inputs" in value:
        return value["inputs"]
    errors = [(str(name), "is not known here") for name in value if name != "inputs"]
    if "inputs" not in value:
        errors.insert(0, ("inputs", 'is missing: send {"inputs": …}'))
    message = "; ".join(f"{field}: {text}" for field, text in errors)[:2000]
    raise Fault(422, "invalid_request", message, errors[:50])


def _write_json(outputs: Any) -> Answer:
    return Answer(b"", codec.dumps({"outputs": outputs}))


def _read_npy(body: bytes) -> Any:
    try:
        import numpy
    except ImportError as exc:
        raise invalid("Content-Type", f"{NPY} needs NumPy, which this image does not have") from exc
    try:
        return numpy.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, OSError, EOFError) as exc:
        raise unreadable(f"The body is no NumPy .npy file: {exc}.") from exc


def _write_npy(outputs: Any) -> Answer:
    try:
        import numpy
    except ImportError as exc:
        raise invalid("Accept", f"{NPY} needs NumPy, which this image does not have") from exc
    array = numpy.asarray(outputs)
    if array.dtype.hasobject:
        raise codec.NotJson(f"{codec.type_name(outputs)}, which is no array of numbers")
    buffer = io.BytesIO()
    numpy.save(buffer, array, allow_pickle=False)
    return Answer(f"Content-Type: {NPY}\r\n".encode(), buffer.getvalue())


def _read_image(body: bytes, kind: str) -> Any:
    """Return a Pillow image where the image has Pillow, else the bytes as they came."""
    try:
        from PIL import Image
    except ImportError:
        return body
    try:
        image = Image.open(io.BytesIO(body))
        image.load()
    except MemoryError:
        raise
    except Exception as exc:
        raise unreadable(f"The body is no {kind} that Pillow can read: {exc}.") from exc
    return image
