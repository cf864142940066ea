"""Every route of the REST API, as data."""

from __future__ import annotations

from typing import Any

from airhub.domain.models import Inference, Template, Train, Workspace
from airhub.errors import InvalidRequest
from airhub.usecases import requests as ask
from airhub.usecases.access import ADMIN, READ, WRITE, owned
from airhub.usecases.base import LONGEST_WAIT_SECONDS
from airhub.web import downloads, logs, uploads
from airhub.web.routing import Call, Query, Route

LIMIT = Query("limit", "integer", "How many at most.", 50, 1, 200)
AFTER = Query("after", description="The `next` of the page before.")
NAME = Query("name", description="Only those with exactly this name.")
STATE = Query("state", description="Only those in this state.")
OWNER = Query("owner", description="For admins: only this user's.")
WAIT = Query("wait", "number", "Hold the answer this many seconds at most.", None, 0, LONGEST_WAIT_SECONDS)
STATE_NOT = Query("state_not", description="With wait: until the state is another than this.")


def _exists(record_type: type, kind: str | None = None) -> Any:
    def check(call: Call) -> None:
        record = owned(call.services.parts.store, call.actor, record_type, call.ids[0])
        if kind is not None and record.kind != kind:
            from airhub.usecases.access import not_found

            raise not_found()

    return check


def _page(call: Call, *names: str) -> dict[str, Any]:
    return {name: call.query[name] for name in ("limit", "after", *names)}


async def _waited(call: Call, use_case: Any, *kind: str) -> Any:
    seconds, unwanted = call.query["wait"], call.query["state_not"]
    if (seconds is None) != (unwanted is None):
        raise InvalidRequest.of("wait" if seconds is None else "state_not", "goes together with the other of wait and state_not")
    if seconds is None:
        return use_case.get(call.actor, *kind, call.ids[0])
    return await use_case.wait(call.actor, *kind, call.ids[0], unwanted, seconds)


def _workspaces(kind: str) -> list[Route]:
    things, model = f"/{kind}s", ask.CreateNotebook if kind == "notebook" else ask.CreateDebug
    there = _exists(Workspace, kind)
    common: dict[str, Any] = {"tag": f"{kind}s", "answer": kind.capitalize()}

    def act(action: str) -> Any:
        return lambda call: call.services.workspaces.act(call.actor, kind, call.ids[0], action)

    return [
        Route("GET", things, f"List {kind}s", lambda call: call.services.workspaces.list(
            call.actor, kind, **_page(call, "name", "state", "owner")), READ,
            query=(STATE, NAME, LIMIT, AFTER, OWNER), **{**common, "answer": f"{kind.capitalize()}List"}),
        Route("POST", things, f"Make a {kind}", lambda call: call.services.workspaces.create(
            call.actor, kind, call.body, call.request_key), WRITE, status=201, body=model, creates=True, **common),
        Route("GET", things + "/{id}", f"Show a {kind}", lambda call: _waited(call, call.services.workspaces, kind), READ,
              query=(WAIT, STATE_NOT), exists=there, **common),
        Route("PATCH", things + "/{id}", f"Change a {kind}'s name or description",
              lambda call: call.services.workspaces.patch(call.actor, kind, call.ids[0], call.body), WRITE,
              body=ask.PatchWorkspace, exists=there, **common),
        Route("DELETE", things + "/{id}", f"Delete a {kind} with what was installed in it",
              lambda call: call.services.workspaces.delete(call.actor, kind, call.ids[0]), WRITE, status=204,
              exists=there, tag=f"{kind}s"),
        *(
            Route("POST", things + "/{id}/" + action, words, act(action), WRITE, status=202, body=ask.Nothing,
                  body_optional=True, exists=there, **common)
            for action, words in (
                ("start", f"Start or resume a {kind}"), ("pause", f"Freeze a {kind}"), ("stop", f"Stop a {kind}"),
            )
        ),
    ]


_T = _exists(Train)
_P = _exists(Template)
_I = _exists(Inference)

IMAGES = [
    Route("GET", "/images", "List the images of the catalogue", lambda call: call.services.images.list(
        call.actor, **_page(call, "name", "kind")), READ, "images", query=(
            NAME, Query("kind", choices=("notebook", "debug", "train", "inference"), description="Only those for this kind."),
            LIMIT, AFTER), answer="ImageList"),
    Route("POST", "/images", "Add an image to the catalogue", lambda call: call.services.images.create(
        call.actor, call.body, call.request_key), ADMIN, "images", 201, body=ask.CreateImage, creates=True, answer="Image"),
    Route("GET", "/images/{id}", "Show an image", lambda call: call.services.images.get(call.actor, call.ids[0]), READ,
          "images", exists=lambda call: call.services.images.find(call.ids[0]), answer="Image"),
    Route("PATCH", "/images/{id}", "Change an image's entry", lambda call: call.services.images.patch(
        call.actor, call.ids[0], call.body), ADMIN, "images", body=ask.PatchImage,
        exists=lambda call: call.services.images.find(call.ids[0]), answer="Image"),
    Route("DELETE", "/images/{id}", "Take an image out of the catalogue", lambda call: call.services.images.delete(
        call.actor, call.ids[0]), ADMIN, "images", 204, exists=lambda call: call.services.images.find(call.ids[0])),
]

TEMPLATES = [
    Route("GET", "/templates", "List templates", lambda call: call.services.templates.list(
        call.actor, **_page(call, "name", "owner")), READ, "templates", query=(NAME, LIMIT, AFTER, OWNER),
        answer="TemplateList"),
    Route("POST", "/templates", "Make a template", lambda call: call.services.templates.create(
        call.actor, call.body, call.request_key), WRITE, "templates", 201, body=ask.CreateTemplate, creates=True,
        answer="Template"),
    Route("GET", "/templates/{id}", "Show a template", lambda call: call.services.templates.get(
        call.actor, call.ids[0]), READ, "templates", exists=_P, answer="Template"),
    Route("PATCH", "/templates/{id}", "Edit a template; what it runs makes a new version",
          lambda call: call.services.templates.patch(call.actor, call.ids[0], call.body), WRITE, "templates",
          body=ask.PatchTemplate, exists=_P, answer="Template"),
    Route("DELETE", "/templates/{id}", "Delete a template", lambda call: call.services.templates.delete(
        call.actor, call.ids[0], call.query["force"]), WRITE, "templates", 204, exists=_P, query=(
            Query("force", "boolean", "Also while an unfinished train uses it.", False),)),
    Route("GET", "/templates/{id}/versions", "List a template's versions", lambda call: call.services.templates.versions(
        call.actor, call.ids[0], **_page(call)), READ, "templates", exists=_P, query=(LIMIT, AFTER), answer="VersionList"),
    Route("GET", "/templates/{id}/diff", "Compare two versions", lambda call: call.services.templates.diff(
        call.actor, call.ids[0], call.query["old"] or 1, call.query["new"] or 1), READ, "templates", exists=_P, query=(
            Query("old", "integer", "The older version.", None, 1), Query("new", "integer", "The newer version.", None, 1)),
        answer="DiffList"),
]

TRAINS = [
    Route("GET", "/trains", "List training jobs", lambda call: call.services.trains.list(
        call.actor, **_page(call, "name", "state", "owner", "template_id")), READ, "trains",
        query=(STATE, NAME, LIMIT, AFTER, OWNER, Query("template_id", "integer", "Only jobs of this template.", None, 1)),
        answer="TrainList"),
    Route("POST", "/trains", "Make a training job", lambda call: call.services.trains.create(
        call.actor, call.body, call.request_key), WRITE, "trains", 201, body=ask.CreateTrain, creates=True, answer="Train"),
    Route("GET", "/trains/metrics", "Compare one tag over several jobs", lambda call: call.services.trains.compare(
        call.actor, call.query["ids"], call.query["tag"], call.query["max_points"]), READ, "trains", query=(
            Query("ids", description="Ids of jobs, separated by commas.", default=""),
            Query("tag", description="The series to compare.", default="loss"),
            Query("max_points", "integer", "Points of each series at most.", 1000, 2, 100_000)), answer="Series"),
    Route("GET", "/trains/{id}", "Show a training job", lambda call: _waited(call, call.services.trains), READ, "trains",
          query=(WAIT, STATE_NOT), exists=_T, answer="Train"),
    Route("PATCH", "/trains/{id}", "Change a job's name, description or priority", lambda call: call.services.trains.patch(
        call.actor, call.ids[0], call.body), WRITE, "trains", body=ask.PatchTrain, exists=_T, answer="Train"),
    Route("DELETE", "/trains/{id}", "Stop and delete a job with its files", lambda call: call.services.trains.delete(
        call.actor, call.ids[0]), WRITE, "trains", 204, exists=_T),
    Route("POST", "/trains/{id}/start", "Queue a new attempt, or resume", lambda call: call.services.trains.start(
        call.actor, call.ids[0]), WRITE, "trains", 202, body=ask.Nothing, body_optional=True, exists=_T, answer="Train"),
    Route("POST", "/trains/{id}/pause", "Freeze or suspend", lambda call: call.services.trains.pause(
        call.actor, call.ids[0], call.body), WRITE, "trains", 202, body=ask.PauseTrain, body_optional=True, exists=_T,
        answer="Train"),
    Route("POST", "/trains/{id}/stop", "Stop", lambda call: call.services.trains.stop(
        call.actor, call.ids[0], call.body), WRITE, "trains", 202, body=ask.StopTrain, body_optional=True, exists=_T,
        answer="Train"),
    Route("GET", "/trains/{id}/progress", "How far a job is", lambda call: call.services.trains.progress(
        call.actor, call.ids[0]), READ, "trains", exists=_T, answer="Progress"),
    Route("GET", "/trains/{id}/metrics", "A job's series", lambda call: call.services.trains.metrics(
        call.actor, call.ids[0], call.query["tag"] or None, call.query["max_points"]), READ, "trains", exists=_T, query=(
            Query("tag", description="Which series; none: all.", repeated=True),
            Query("max_points", "integer", "Points of each series at most.", 1000, 2, 100_000)), answer="Series"),
    Route("GET", "/trains/{id}/logs", "A job's output", logs.serve_log, READ, "trains", exists=_T, streams=True,
          media_type="text/plain", query=(
              Query("after", "integer", "Byte offset to begin at.", 0, 0),
              Query("limit", "integer", "Bytes at most.", None, 1),
              Query("follow", "boolean", "Go on as it grows, as Server-Sent Events.", False))),
    Route("GET", "/trains/{id}/checkpoints", "A job's checkpoints", lambda call: call.services.trains.checkpoints(
        call.actor, call.ids[0]), READ, "trains", exists=_T, answer="CheckpointList"),
    Route("POST", "/trains/{id}/debug", "Make a debug that is the job's twin", lambda call: call.services.workspaces.twin(
        call.actor, call.ids[0]), WRITE, "trains", 201, body=ask.Nothing, body_optional=True, exists=_T, answer="Debug"),
]

INFERENCES = [
    Route("GET", "/inferences", "List inference models", lambda call: call.services.inferences.list(
        call.actor, **_page(call, "name", "state", "owner")), READ, "inferences", query=(STATE, NAME, LIMIT, AFTER, OWNER),
        answer="InferenceList"),
    Route("POST", "/inferences", "Make an inference model", lambda call: call.services.inferences.create(
        call.actor, call.body, call.request_key), WRITE, "inferences", 201, body=ask.CreateInference, creates=True,
        answer="Inference"),
    Route("GET", "/inferences/{id}", "Show an inference model", lambda call: _waited(call, call.services.inferences), READ,
          "inferences", query=(WAIT, STATE_NOT), exists=_I, answer="Inference"),
    Route("PATCH", "/inferences/{id}", "Change an inference model; another checkpoint swaps the model",
          lambda call: call.services.inferences.patch(call.actor, call.ids[0], call.body), WRITE, "inferences",
          body=ask.PatchInference, exists=_I, answer="Inference"),
    Route("DELETE", "/inferences/{id}", "Stop and delete an inference model", lambda call: call.services.inferences.delete(
        call.actor, call.ids[0]), WRITE, "inferences", 204, exists=_I),
    *(
        Route("POST", "/inferences/{id}/" + action, words, lambda call, action=action: call.services.inferences.act(
            call.actor, call.ids[0], action), WRITE, "inferences", 202, body=ask.Nothing, body_optional=True, exists=_I,
            answer="Inference")
        for action, words in (("start", "Start or resume"), ("pause", "Freeze"), ("stop", "Stop"))
    ),
    Route("GET", "/inferences/{id}/keys", "List endpoint keys", lambda call: call.services.inferences.keys(
        call.actor, call.ids[0]), WRITE, "inferences", exists=_I, answer="KeyList"),
    Route("POST", "/inferences/{id}/keys", "Make an endpoint key; it is shown once",
          lambda call: call.services.inferences.make_key(call.actor, call.ids[0]), WRITE, "inferences", 201,
          body=ask.Nothing, body_optional=True, exists=_I, answer="Key"),
    Route("DELETE", "/inferences/{id}/keys/{key_id}", "Revoke an endpoint key",
          lambda call: call.services.inferences.revoke_key(call.actor, *call.ids), WRITE, "inferences", 204, exists=_I),
    Route("GET", "/inferences/{id}/logs", "A model's output", lambda call: call.services.inferences.serve_log(call), READ,
          "inferences", exists=_I, streams=True, media_type="text/plain", query=(
              Query("after", "integer", "Byte offset to begin at.", 0, 0),
              Query("limit", "integer", "Bytes at most.", None, 1))),
]

FILES = [
    Route("GET", "/files", "List a folder", lambda call: call.services.files.list(
        call.actor, call.query["path"], limit=call.query["limit"], after=call.query["after"]), READ, "files", query=(
            Query("path", description="A path as `home/x`; none: the roots.", default=""), LIMIT, AFTER), answer="FileList"),
    Route("DELETE", "/files", "Remove a file or folder from home or uploads", lambda call: call.services.files.delete(
        call.actor, call.query["path"]), WRITE, "files", 204, query=(Query("path", default=""),)),
    Route("GET", "/files/content", "Download a file", downloads.serve_file, READ, "files", streams=True,
          media_type="application/octet-stream", query=(Query("path", default=""),)),
    Route("POST", "/uploads", "Upload an archive or a file", uploads.receive, WRITE, "files", 201, upload=True,
          answer="Upload"),
]

OTHERS = [
    Route("GET", "/resources", "What there is, what is in use, what waits", lambda call: call.services.resources.show(
        call.actor), READ, "resources", answer="Resources"),
    Route("GET", "/quotas", "List quotas", lambda call: call.services.resources.quotas(call.actor), ADMIN, "resources",
          answer="QuotaList"),
    Route("GET", "/events", "Everything that happens to one's objects, as Server-Sent Events",
          lambda call: call.services.events.serve(call), READ, "events", streams=True, media_type="text/event-stream",
          query=(Query("after", "integer", "Sequence number after which to begin.", None, 0), OWNER)),
]

ROUTES: list[Route] = [
    *IMAGES, *_workspaces("notebook"), *_workspaces("debug"), *TEMPLATES, *TRAINS, *INFERENCES, *FILES, *OTHERS,
]
