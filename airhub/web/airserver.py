"""The Airserver-2.0 operations at their documented paths: each one use case of the REST API by another name."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from airhub.errors import AirHubError, FieldError, InvalidRequest, NotFound, Unauthorized
from airhub.usecases import requests as ask
from airhub.usecases.access import READ, WRITE, Actor
from airhub.usecases.requests import parse
from airhub.web.auth import actor_of_token, header_token
from airhub.web.base import BaseHandler, decode_json, error_body, to_json
from airhub.web.services import Services

TRUE, FALSE = {"true", "1"}, {"false", "0"}
PAGE = 200


@dataclass(frozen=True)
class Field:
    """One field of an operation. ``kind``: ``id``, ``text``, ``flag``, ``any``, ``texts`` or ``number``."""

    name: str
    kind: str = "text"
    required: bool = True

    def read(self, value: Any) -> Any:
        """Convert what was sent, JSON or form text. Raises ``InvalidRequest``."""
        if self.kind == "id":
            return self._id(value)
        if self.kind == "flag":
            return self._flag(value)
        if self.kind == "text" and not isinstance(value, str):
            raise InvalidRequest.of(self.name, "must be a text")
        if self.kind == "texts":
            items = [item for item in value.split(",") if item] if isinstance(value, str) else value
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise InvalidRequest.of(self.name, "must be a list of texts")
            return items
        if self.kind == "number":
            return self._id(value)
        return value

    def _id(self, value: Any) -> int:
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) <= 18:
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        raise InvalidRequest.of(self.name, "must be a whole number")

    def _flag(self, value: Any) -> bool:
        text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
        if text not in TRUE | FALSE:
            raise InvalidRequest.of(self.name, "must be true or false (or 1 or 0)")
        return text in TRUE


Given = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One operation: its fields, what the token must allow, and what answers besides ``success``."""

    name: str
    fields: tuple[Field, ...]
    call: Callable[[Services, Actor, Given], Awaitable[Given] | Given]
    power: str = WRITE


def _fields(text: str) -> tuple[Field, ...]:
    """Read ``name:kind`` words; those in brackets are optional."""
    required, _, optional = text.partition("[")
    made = []
    for words, needed in ((required, True), (optional.rstrip("]"), False)):
        for word in words.split():
            name, _, kind = word.partition(":")
            made.append(Field(name, kind or ("id" if name.endswith("_id") else "text"), needed))
    return tuple(made)


def _some(given: Given, *names: str) -> Given:
    return {name: given[name] for name in names if given.get(name) is not None}


async def _notebook_create(services: Services, actor: Actor, given: Given) -> Given:
    body = parse(ask.CreateNotebook, _some(given, "image_id", "dataset", "code"))
    return {"notebook_id": (await services.workspaces.create(actor, "notebook", body))["id"]}


async def _debug_create(services: Services, actor: Actor, given: Given) -> Given:
    fields = {"name": given["debug_name"], "description": given.get("desc") or "", **_some(given, "image_id", "dataset", "code")}
    return {"debug_id": (await services.workspaces.create(actor, "debug", parse(ask.CreateDebug, fields)))["id"]}


def _workspace(kind: str, action: str) -> Any:
    async def call(services: Services, actor: Actor, given: Given) -> Given:
        services.workspaces.get(actor, kind, given[f"{kind}_id"])
        if action == "delete":
            await services.workspaces.delete(actor, kind, given[f"{kind}_id"])
            return {"state": "deleted"}
        return {"state": (await services.workspaces.act(actor, kind, given[f"{kind}_id"], action))["state"]}

    return call


def _query(plural: str, listing: Any, single: Any) -> Any:
    async def call(services: Services, actor: Actor, given: Given) -> Given:
        wanted = given.get(plural[:-1] + "_id")
        if wanted is not None:
            return {plural: [await _settled(single(services, actor, wanted))]}
        items: list[Any] = []
        after: str | None = None
        while True:
            page = await _settled(listing(services, actor, after))
            items += page["items"]
            after = page["next"]
            if after is None:
                return {plural: items}

    return call


async def _template_create(services: Services, actor: Actor, given: Given) -> Given:
    fields = {"name": given["template_name"], **_some(
        given, "image_id", "code_path", "model_path", "data_path", "description", "command", "gpus")}
    return {"template_id": (await services.templates.create(actor, parse(ask.CreateTemplate, fields)))["id"]}


async def _template_from_train(services: Services, actor: Actor, given: Given) -> Given:
    fields = {"name": given["template_name"], **_some(given, "train_id", "checkpoint", "description")}
    return {"template_id": (await services.templates.create(actor, parse(ask.CreateTemplate, fields)))["id"]}


async def _template_edit(services: Services, actor: Actor, given: Given) -> Given:
    template_id = given["template_id"]
    template = services.templates.get(actor, template_id)
    if given.get("edit_model") is not None:
        body = parse(ask.PatchTemplate, {"model_path": given["edit_model"]})
        template = await services.templates.patch(actor, template_id, body)
    answer: Given = {"template_id": template_id, "version": template["version"]}
    if given.get("edit_code") is True:
        debug = await services.workspaces.draft_debug(actor, template_id)
        answer |= {"debug_id": debug["id"], "url": debug["url"]}
    elif given.get("edit_code") is False:
        answer["version"] = (await services.templates.publish_draft(actor, template_id))["version"]
    return answer


async def _template_delete(services: Services, actor: Actor, given: Given) -> Given:
    await services.templates.delete(actor, given["template_id"])
    return {}


async def _train_create(services: Services, actor: Actor, given: Given) -> Given:
    fields = {"name": given["train_name"], "dist": given["dist"], **_some(
        given, "template_id", "dataset", "description", "model_path")}
    return {"train_id": (await services.trains.create(actor, parse(ask.CreateTrain, fields)))["id"]}


def _train(action: str) -> Any:
    async def call(services: Services, actor: Actor, given: Given) -> Given:
        train_id, trains = given["train_id"], services.trains
        trains.get(actor, train_id)
        if action == "delete":
            await trains.delete(actor, train_id)
            return {"state": "deleted"}
        if action == "start":
            return {"state": (await trains.start(actor, train_id))["state"]}
        if action == "pause":
            return {"state": (await trains.pause(actor, train_id, ask.PauseTrain()))["state"]}
        return {"state": trains.stop(actor, train_id, ask.StopTrain())["state"]}

    return call


def _train_schedule(services: Services, actor: Actor, given: Given) -> Given:
    return {"schedule": services.trains.progress(actor, given["train_id"])}


async def _train_visual(services: Services, actor: Actor, given: Given) -> Given:
    points = given.get("max_points") or 1000
    if not 2 <= points <= 100_000:
        raise InvalidRequest.of("max_points", "must be between 2 and 100000")
    series = await services.trains.metrics(actor, given["train_id"], given.get("tags") or None, points)
    prefix = services.parts.settings.public_prefix
    return {**decode_json(series), "tensorboard_url": f"{prefix}tensorboard/{given['train_id']}/"}


async def _inference_create(services: Services, actor: Actor, given: Given) -> Given:
    fields = {"name": given["inference_name"], **_some(given, "train_id", "checkpoint", "description")}
    return {"inference_id": (await services.inferences.create(actor, parse(ask.CreateInference, fields)))["id"]}


async def _inference_from_code(services: Services, actor: Actor, given: Given) -> Given:
    fields = {"name": given["inference_name"], **_some(given, "image_id", "code_path", "model_path", "description")}
    return {"inference_id": (await services.inferences.create(actor, parse(ask.CreateInference, fields)))["id"]}


def _inference(action: str) -> Any:
    async def call(services: Services, actor: Actor, given: Given) -> Given:
        inference_id = given["inference_id"]
        services.inferences.get(actor, inference_id)
        if action == "delete":
            await services.inferences.delete(actor, inference_id)
            return {"state": "deleted"}
        return {"state": (await services.inferences.act(actor, inference_id, action))["state"]}

    return call


async def _predict(services: Services, actor: Actor, given: Given) -> Given:
    return {"outputs": await services.inferences.predict(actor, given["inference_id"], given["inputs"])}


async def _get_spec_dir(services: Services, actor: Actor, given: Given) -> Given:
    return await services.files.names(actor, given["query_path"])


def _operations() -> dict[str, Operation]:
    made = [
        Operation("notebook_create", _fields("image_id [dataset code]"), _notebook_create),
        Operation("debug_create", _fields("debug_name image_id [dataset code desc]"), _debug_create),
        Operation("template_create", _fields("template_name image_id code_path model_path data_path [description]"), _template_create),
        Operation("template_edit", _fields("template_id [edit_code:flag edit_model]"), _template_edit),
        Operation("template_delete", _fields("template_id"), _template_delete),
        Operation("template_create_from_train", _fields("train_id template_name [checkpoint description]"), _template_from_train),
        Operation("train_create", _fields("train_name template_id dataset dist:flag [description model_path]"), _train_create),
        Operation("train_get_schedule", _fields("train_id"), _train_schedule, READ),
        Operation("train_visual", _fields("train_id [tags:texts max_points:number]"), _train_visual, READ),
        Operation("inference_create", _fields("inference_name train_id [checkpoint description]"), _inference_create),
        Operation("inference_create_from_code", _fields("inference_name image_id code_path [model_path description]"), _inference_from_code),
        Operation("inference_predict", _fields("inference_id inputs:any"), _predict, "predict"),
        Operation("get_spec_dir", _fields("query_path"), _get_spec_dir, READ),
        Operation("template_query", _fields("[template_id]"), _query(
            "templates",
            lambda s, a, after: s.templates.list(a, limit=PAGE, after=after, name=None, owner=a.name if a.is_admin else None),
            lambda s, a, i: s.templates.get(a, i)), READ),
        Operation("train_query", _fields("[train_id]"), _query(
            "trains",
            lambda s, a, after: s.trains.list(a, limit=PAGE, after=after, name=None, state=None, owner=a.name if a.is_admin else None),
            lambda s, a, i: s.trains.get(a, i)), READ),
        Operation("inference_query", _fields("[inference_id]"), _query(
            "inferences",
            lambda s, a, after: s.inferences.list(a, limit=PAGE, after=after, name=None, state=None, owner=a.name if a.is_admin else None),
            lambda s, a, i: s.inferences.get(a, i)), READ),
    ]
    for kind in ("notebook", "debug"):
        made += [Operation(f"{kind}_{action}", _fields(f"{kind}_id"), _workspace(kind, action))
                 for action in ("start", "pause", "stop", "delete")]
        made.append(Operation(f"{kind}_query", _fields(f"[{kind}_id]"), _query(
            f"{kind}s",
            lambda s, a, after, kind=kind: s.workspaces.list(
                a, kind, limit=PAGE, after=after, name=None, state=None, owner=a.name if a.is_admin else None),
            lambda s, a, i, kind=kind: s.workspaces.get(a, kind, i)), READ))
    for action in ("start", "pause", "stop", "delete"):
        made.append(Operation(f"train_{action}", _fields("train_id"), _train(action)))
        made.append(Operation(f"inference_{action}", _fields("inference_id"), _inference(action)))
    return {operation.name: operation for operation in made}


OPERATIONS = _operations()


class AirserverHandler(BaseHandler):
    """Serves every operation; cookies do not count here."""

    async def post(self, name: str) -> None:
        given = self._given()
        token = given.pop("token", None)
        from_header = header_token(self.request)
        if from_header is not None:
            token = from_header
        if not isinstance(token, str) or not token:
            raise Unauthorized("A JupyterHub API token is needed, in the field `token` or in the Authorization header.")
        actor = await actor_of_token(self.services.auth, token)
        operation = OPERATIONS.get(name)
        if operation is None:
            raise NotFound(f"There is no operation {name}; openapi.json lists them all.")
        actor.require(operation.power)
        if self._malformed is not None:
            raise self._malformed
        fields = _read_fields(operation, given)
        answer = await _settled(operation.call(self.services, actor, fields))
        self.answer({"success": True, **answer})

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        body = error_body(kwargs.get("exc_info", (None, None, None))[1], status_code)
        self.set_status(int(body["status"]))
        self.finish(to_json({"success": False, "error": body}))

    def _given(self) -> Given:
        """Return the fields, from JSON or from a form. What cannot be read counts after the token."""
        self._malformed: AirHubError | None = None
        kind = self.request.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if self.request.query_arguments:
            name = next(iter(self.request.query_arguments))
            self._malformed = InvalidRequest(
                "Fields go in the body, not in the URL.", [FieldError(name, "is not a known query parameter")]
            )
        try:
            if kind == "application/x-www-form-urlencoded":
                return _form(self.request.body)
            if kind == "multipart/form-data":
                fields = {name: values[-1].decode("utf-8") for name, values in self.request.body_arguments.items()}
                if not fields and self.request.body.strip():
                    raise InvalidRequest("The multipart body is malformed or empty.")
                return fields
            body = decode_json(self.request.body) if self.request.body.strip() else {}
            if not isinstance(body, dict):
                raise InvalidRequest("The body must be a JSON object or form fields.")
            return body
        except (AirHubError, UnicodeDecodeError) as exc:
            malformed = exc if isinstance(exc, AirHubError) else InvalidRequest("The form is not UTF-8 text.")
            self._malformed = self._malformed or malformed
            return {}


def _form(data: bytes) -> Given:
    pairs = parse_qsl(data.decode("utf-8"), keep_blank_values=True, errors="strict")
    fields: Given = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest.of(name, "is given more than once")
        fields[name] = value
    return fields


def _read_fields(operation: Operation, given: Given) -> Given:
    known = {field.name: field for field in operation.fields}
    errors = [FieldError(name, f"is not a field of {operation.name}") for name in given if name not in known]
    read: Given = {}
    for field in operation.fields:
        value = given.get(field.name)
        if value is None or (value == "" and field.kind in ("id", "flag", "number")):
            if field.required and not (field.kind == "any" and field.name in given):
                errors.append(FieldError(field.name, "is required"))
            continue
        try:
            read[field.name] = field.read(value)
        except InvalidRequest as exc:
            errors += exc.errors
    if errors:
        raise InvalidRequest(f"{errors[0].field}: {errors[0].message}", errors)
    for field in operation.fields:
        if field.kind == "any" and field.name in given:
            read[field.name] = given[field.name]
    return read


async def _settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
