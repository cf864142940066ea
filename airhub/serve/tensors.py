"""The Open Inference Protocol's tensors: from requests to ``predict``'s inputs and back, in JSON or binary form."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import codec
from .faults import Fault, invalid, unreadable

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*_FORMATS, "BYTES")
_NUMPY = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_REQUEST_FIELDS = {"id", "parameters", "inputs", "outputs"}
_TENSOR_FIELDS = {"name", "shape", "datatype", "parameters", "data"}


@dataclass(frozen=True)
class InferRequest:
    """One request: ``inputs`` as ``predict`` gets them, and which outputs its sender wants in which form."""

    id: str | None
    inputs: Any
    wanted: dict[str, bool] | None
    binary: bool

    def is_binary(self, name: str) -> bool:
        """True when the sender asked for this output's data in binary form."""
        return self.wanted.get(name, self.binary) if self.wanted is not None else self.binary


@dataclass(frozen=True)
class Tensor:
    """One output: its elements in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    flat: list[Any]


def read_request(body: bytes, header_length: int | None) -> InferRequest:
    """Read a request; with ``header_length`` what follows that many bytes of JSON is binary tensor data.

    One tensor becomes nested lists, several a dictionary of such by name. A BYTES tensor's elements are strings,
    or all of them bytes where one is not UTF-8. Raise the 422 that says what is wrong.
    """
    if header_length is not None and header_length > len(body):
        raise invalid("Inference-Header-Content-Length", f"is {header_length}, the body has {len(body)} bytes")
    try:
        value = codec.loads(body if header_length is None else body[:header_length])
    except ValueError as exc:
        raise unreadable(f"The body is not JSON: {exc}.") from exc
    if not isinstance(value, dict):
        raise unreadable("The body is not a JSON object.")
    _refuse_unknown("", value, _REQUEST_FIELDS)
    tensors = value.get("inputs")
    if not isinstance(tensors, list) or not tensors:
        raise invalid("inputs", "must be a list of at least one tensor")
    rest = memoryview(body)[header_length:] if header_length is not None else memoryview(b"")
    named: dict[str, Any] = {}
    for index, tensor in enumerate(tensors):
        name, content, rest = _read_tensor(f"inputs[{index}]", tensor, rest)
        if name in named:
            raise invalid(f"inputs[{index}].name", f"{name!r} is there twice")
        named[name] = content
    if len(rest):
        raise unreadable(f"{len(rest)} bytes of tensor data belong to no tensor.")
    number = value.get("id")
    return InferRequest(
        id=str(number) if number is not None else None,
        inputs=next(iter(named.values())) if len(named) == 1 else named,
        wanted=_wanted(value),
        binary=_parameters("parameters", value).get("binary_data_output") is True,
    )


def write_response(request: InferRequest, model: str, version: str, outputs: Any) -> tuple[bytes, int | None]:
    """Return the answer's body, and the length of its JSON part where binary data follows it."""
    tensors = to_tensors(outputs)
    if request.wanted is not None:
        found = {tensor.name: tensor for tensor in tensors}
        for name in request.wanted:
            if name not in found:
                known = ", ".join(found) or "none"
                raise invalid("outputs", f"{name!r} is none of what the model answers with: {known}")
        tensors = [found[name] for name in request.wanted]
    binary = []
    described = []
    for tensor in tensors:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if request.is_binary(tensor.name):
            data = _pack(tensor)
            entry["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            entry["data"] = [_text(item) for item in tensor.flat] if tensor.datatype == "BYTES" else tensor.flat
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    head = codec.dumps(answer)
    if not binary:
        return head, None
    return b"".join((head, *binary)), len(head)


def to_tensors(outputs: Any) -> list[Tensor]:
    """Turn what ``predict`` returned into tensors: a dictionary by its names, anything else as one, ``output``."""
    if isinstance(outputs, dict):
        return [_to_tensor(str(name), value) for name, value in outputs.items()]
    return [_to_tensor("output", outputs)]


def _read_tensor(field: str, tensor: Any, rest: memoryview) -> tuple[str, Any, memoryview]:
    if not isinstance(tensor, dict):
        raise invalid(field, "is not a JSON object")
    _refuse_unknown(f"{field}.", tensor, _TENSOR_FIELDS)
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str) or not name:
        raise invalid(f"{field}.name", "must be a string")
    if datatype not in DATATYPES:
        raise invalid(f"{field}.datatype", f"is {datatype!r}; it must be one of {', '.join(DATATYPES)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise invalid(f"{field}.shape", "must be a list of whole numbers from 0")
    size = _parameters(f"{field}.parameters", tensor).get("binary_data_size")
    count = math.prod(shape)
    if size is None:
        flat: list[Any] = []
        _flatten(tensor.get("data"), flat, f"{field}.data")
        flat = _checked(flat, datatype, f"{field}.data")
    else:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise invalid(f"{field}.parameters", f"binary_data_size is {size!r}; {len(rest)} bytes of data are there")
        flat = _unpack(rest[:size], datatype, count, field)
        rest = rest[size:]
    if len(flat) != count:
        raise invalid(f"{field}.data", f"has {len(flat)} elements; the shape {shape} needs {count}")
    return name, _nested(flat, shape), rest


def _wanted(value: dict[str, Any]) -> dict[str, bool] | None:
    outputs = value.get("outputs")
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise invalid("outputs", "must be a list")
    default = _parameters("parameters", value).get("binary_data_output") is True
    wanted = {}
    for index, output in enumerate(outputs):
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise invalid(f"outputs[{index}].name", "must be a string")
        _refuse_unknown(f"outputs[{index}].", output, {"name", "parameters"})
        parameters = _parameters(f"outputs[{index}].parameters", output)
        if "classification" in parameters:
            raise invalid(f"outputs[{index}].parameters", "classification is not offered here")
        wanted[output["name"]] = parameters.get("binary_data", default) is True
    return wanted


def _parameters(field: str, value: dict[str, Any]) -> dict[str, Any]:
    parameters = value.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise invalid(field, "must be an object")
    return parameters


def _refuse_unknown(prefix: str, value: dict[str, Any], known: set[str]) -> None:
    errors = [(f"{prefix}{name}", "is not known here") for name in value if name not in known]
    if errors:
        raise Fault(422, "invalid_request", "; ".join(f"{name}: {text}" for name, text in errors)[:2000], errors[:50])


def _flatten(data: Any, flat: list[Any], field: str, depth: int = 0) -> None:
    """Append the elements of a list, flat or nested, in row-major order."""
    if not isinstance(data, list):
        raise invalid(field, "must be a list, flat or nested as the shape says")
    if depth > 64:
        raise invalid(field, "is nested too deeply")
    for item in data:
        if isinstance(item, list):
            _flatten(item, flat, field, depth + 1)
        else:
            flat.append(item)


def _checked(flat: list[Any], datatype: str, field: str) -> list[Any]:
    """Return the elements as the datatype has them; refuse what it cannot hold."""
    if datatype == "BYTES":
        if all(type(item) is str for item in flat):
            return flat
        raise invalid(field, "elements of BYTES must be strings")
    if datatype == "BOOL":
        if all(item is True or item is False or (type(item) is int and item in (0, 1)) for item in flat):
            return [bool(item) for item in flat]
        raise invalid(field, "elements of BOOL must be true or false")
    if datatype.startswith("FP"):
        if all(type(item) in (float, int) or item is None for item in flat):
            return [math.nan if item is None else float(item) for item in flat]
        raise invalid(field, f"elements of {datatype} must be numbers")
    bits = int(datatype.lstrip("UINT"))
    low, high = (0, 2**bits - 1) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if all(type(item) is int for item in flat) and (not flat or (min(flat) >= low and max(flat) <= high)):
        return flat
    raise invalid(field, f"elements of {datatype} must be whole numbers from {low} to {high}")


def _unpack(data: memoryview, datatype: str, count: int, field: str) -> list[Any]:
    if datatype == "BYTES":
        return _unpack_bytes(data, field)
    form = _FORMATS[datatype]
    if len(data) != count * struct.calcsize(f"<{form}"):
        needed = count * struct.calcsize(f"<{form}")
        raise invalid(field, f"has {len(data)} bytes of data; {count} elements of {datatype} are {needed}")
    return list(struct.unpack(f"<{count}{form}", data))


def _unpack_bytes(data: memoryview, field: str) -> list[Any]:
    """Read elements that are each led by their length in four bytes."""
    items = []
    position = 0
    while position < len(data):
        end = position + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, position)[0]
        if end > len(data) or end < position + 4:
            raise invalid(field, "its BYTES data is cut short")
        items.append(bytes(data[position + 4 : end]))
        position = end
    try:
        return [item.decode() for item in items]
    except UnicodeDecodeError:
        return items


def _nested(flat: list[Any], shape: list[int]) -> Any:
    """Return the elements as nested lists of the shape; a shape of no dimensions is the element itself."""
    if not shape:
        return flat[0]
    for size in reversed(shape[1:]):
        rows = len(flat) // size if size else math.prod(shape[: shape.index(0)])
        flat = [flat[row * size : (row + 1) * size] for row in range(rows)]
    return flat


def _to_tensor(name: str, value: Any) -> Tensor:
    """Turn one output into a tensor; what is no regular array of one kind becomes BYTES, each element as JSON."""
    dtype = getattr(value, "dtype", None)
    datatype = _NUMPY.get(str(dtype).rpartition(".")[2]) if dtype is not None else None
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        value = tolist()
    if not isinstance(value, (list, tuple)):
        value = [value]
    shape: list[int] = []
    flat = _regular([codec_item(item) for item in value], shape)
    if flat is not None and datatype is None:
        datatype = _datatype(flat)
    if flat is None or datatype is None:
        return Tensor(name, "BYTES", [len(value)], [codec.dumps(item).decode() for item in value])
    return Tensor(name, datatype, shape, flat)


def codec_item(value: Any) -> Any:
    """Return nested lists for arrays and scalars within an output, everything else as it is."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    if isinstance(value, (list, tuple)):
        return [codec_item(item) for item in value]
    return value


def _regular(value: list[Any], shape: list[int]) -> list[Any] | None:
    """Return the elements of nested lists that all have one shape, which is written to ``shape``; else None."""
    shape.append(len(value))
    while value and all(isinstance(item, list) for item in value):
        length = len(value[0])
        if any(len(item) != length for item in value):
            return None
        shape.append(length)
        value = [element for item in value for element in item]
    return None if any(isinstance(item, list) for item in value) else value


def _datatype(flat: Iterable[Any]) -> str | None:
    kinds = {type(item) for item in flat}
    if kinds <= {bool} and kinds:
        return "BOOL"
    if kinds == {int}:
        return "INT64" if all(-(2**63) <= item < 2**63 for item in flat) else None
    if kinds <= {int, float}:
        return "FP64"
    if kinds <= {str, bytes}:
        return "BYTES"
    return None


def _pack(tensor: Tensor) -> bytes:
    if tensor.datatype != "BYTES":
        return struct.pack(f"<{len(tensor.flat)}{_FORMATS[tensor.datatype]}", *tensor.flat)
    parts = []
    for item in tensor.flat:
        data = item if isinstance(item, bytes) else str(item).encode()
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts)


def _text(item: Any) -> str:
    if isinstance(item, bytes):
        try:
            return item.decode()
        except UnicodeDecodeError as exc:
            raise codec.NotJson("bytes that are not UTF-8, in a JSON answer; ask for binary data") from exc
    return str(item)
