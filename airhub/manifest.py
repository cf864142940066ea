"""``template.json`` beside the code: read, checked against the published schema, errors with the line they are in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from airhub.errors import FieldError, InvalidRequest

FILE_NAME = "template.json"
LARGEST_BYTES = 1 << 20
GROUPS = frozenset({"epoch", "epochs", "step", "steps", "loss"})


@cache
def manifest_schema() -> Mapping[str, Any]:
    """Return the JSON Schema that ``template.json`` must follow."""
    return json.loads(resources.files("airhub").joinpath("schemas/template.schema.json").read_text("utf-8"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what the ``template.json`` of a code folder says; empty when there is none.

    Raises ``InvalidRequest`` that names the line.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST_BYTES:
        raise InvalidRequest.of(FILE_NAME, f"is larger than {LARGEST_BYTES} bytes")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidRequest.of(FILE_NAME, f"is not UTF-8 text (byte {exc.start})") from exc
    try:
        manifest = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as exc:
        where = f"line {exc.lineno}, column {exc.colno}: {exc.msg}" if isinstance(exc, json.JSONDecodeError) else "too deep"
        raise InvalidRequest.of(FILE_NAME, f"is not valid JSON: {where}") from exc
    errors = sorted(Draft202012Validator(manifest_schema()).iter_errors(manifest), key=lambda error: list(map(str, error.path)))
    if errors:
        fields = [FieldError(_name(error.path), f"line {line_of(text, error.path)}: {error.message}") for error in errors]
        raise InvalidRequest(f"{FILE_NAME}, {fields[0].message}", fields)
    if "parameters" in manifest:
        check_parameter_schema(manifest["parameters"], f"{FILE_NAME} parameters")
    for index, pattern in enumerate(manifest.get("progress", ())):
        check_pattern(pattern, f"{FILE_NAME} progress[{index}]", line_of(text, ["progress", index]))
    return manifest


def check_parameter_schema(schema: Any, field: str) -> dict[str, Any]:
    """Check that a template's ``parameters`` is a JSON Schema of an object; return it."""
    if not isinstance(schema, dict):
        raise InvalidRequest.of(field, "must be a JSON Schema object")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise InvalidRequest.of(field, f"is not a valid JSON Schema: {exc.message}") from exc
    if schema.get("type", "object") != "object":
        raise InvalidRequest.of(field, "must describe an object (type: object)")
    if not isinstance(schema.get("properties", {}), dict):
        raise InvalidRequest.of(field, "properties must be an object")
    return schema


def check_pattern(pattern: str, field: str, line: int) -> None:
    """Check a regular expression for progress: linear time, with at least one of the known groups."""
    try:
        groups = set(re2.compile(pattern).groupindex)
    except re2.error as exc:
        raise InvalidRequest.of(field, f"line {line}: is not a regular expression that runs in linear time: {exc}") from exc
    unknown = groups - GROUPS
    if unknown or not groups:
        raise InvalidRequest.of(
            field, f"line {line}: needs named groups among {', '.join(sorted(GROUPS))}" + (f", not {', '.join(sorted(unknown))}" if unknown else "")
        )


def fill_parameters(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a job: defaults of the template, then what was given; checked.

    Raises ``InvalidRequest`` that names each wrong one. Parameters outside ``properties`` are refused unless
    ``additionalProperties`` is true.
    """
    properties = schema.get("properties", {})
    merged = {name: rule["default"] for name, rule in properties.items() if isinstance(rule, dict) and "default" in rule}
    merged.update(given)
    errors = []
    if schema.get("additionalProperties") is not True and not isinstance(schema.get("additionalProperties"), dict):
        known = ", ".join(properties) or "none"
        errors = [
            FieldError(f"parameters.{name}", f"is not a parameter of this template; it has: {known}")
            for name in given
            if name not in properties
        ]
    for name in merged:
        if not name or name.startswith("-") or any(char.isspace() or char == "=" for char in name):
            errors.append(FieldError(f"parameters.{name}", "is not a name that can be given as --name"))
    rules = {**schema, "additionalProperties": True}
    for error in Draft202012Validator(rules).iter_errors(merged):
        deepest = best_match([error]) or error
        errors.append(FieldError(".".join(["parameters", *map(str, deepest.absolute_path)]), deepest.message))
    if errors:
        raise InvalidRequest(f"{errors[0].field}: {errors[0].message}", errors)
    return merged


def line_of(text: str, path: Sequence[Any]) -> int:
    """Return the line (from 1) in which the value at ``path`` of a JSON text begins."""
    position = _find(text, 0, list(path))
    return text.count("\n", 0, position) + 1


def _find(text: str, position: int, path: list[Any]) -> int:
    """Walk the text with the JSON decoder, value by value, to where ``path`` leads."""
    decoder = json.JSONDecoder()
    position = _skip(text, position)
    if not path:
        return position
    wanted = path[0]
    opening = text[position]
    position = _skip(text, position + 1)
    index = 0
    while position < len(text) and text[position] not in "}]":
        key: Any = index
        start = position
        if opening == "{":
            key, position = decoder.raw_decode(text, position)
            position = _skip(text, _skip(text, position) + 1)
        if key == wanted:
            return _find(text, position, path[1:])
        _, position = decoder.raw_decode(text, position)
        position = _skip(text, position)
        if position < len(text) and text[position] == ",":
            position = _skip(text, position + 1)
        index += 1
        if position <= start:
            break
    return position


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _name(path: Sequence[Any]) -> str:
    return ".".join([FILE_NAME, *map(str, path)]) if path else FILE_NAME


