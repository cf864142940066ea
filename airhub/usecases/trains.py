"""Training jobs: what a person may ask of them. Nothing is started here: the reconciler is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from airhub.domain.kinds import find_command
from airhub.domain.lifecycle import FINAL, HOLDING, Status, Target
from airhub.domain.models import Image, Train
from airhub.domain.resources import Amount
from airhub.errors import FieldError, Forbidden, InvalidRequest, InvalidState, NotFound, NotSupported
from airhub.manifest import fill_parameters
from airhub.progress.report import parse_report
from airhub.runtimes.base import Ability
from airhub.store import RequestKey, Store
from airhub.usecases import views
from airhub.usecases.access import READ, WRITE, Actor, not_found, owned
from airhub.usecases.base import Json, Parts, Waiters, answer_page, check_states, created_before
from airhub.usecases.checkpoints import choose_checkpoint, list_checkpoints
from airhub.usecases.requests import CreateTemplate, CreateTrain, PatchTrain, PauseTrain, StopTrain
from airhub.usecases.templates import Templates

STATES = frozenset(
    "created queued starting running paused suspended stopping succeeded failed stopped".split()
)
SETTLE_SECONDS = 5.0
"""How long pause and start of a frozen job wait for the runtime, so that the answer shows what is so."""
DELETE_SECONDS = 20.0
METRIC_POINTS = 1000


class Trains:
    """What a person may do with training jobs."""

    def __init__(self, parts: Parts, templates: Templates, waiters: Waiters):
        self._parts = parts
        self._store: Store = parts.store
        self._templates = templates
        self._waiters = waiters

    async def create(self, actor: Actor, body: CreateTrain, request: RequestKey | None = None) -> Json:
        """Make a job; it waits for ``start``."""
        actor.require(WRITE)
        made = created_before(self._store, Train, request)
        if made is not None:
            return self.view(made)
        if (body.template_id is None) == (body.code_path is None):
            raise InvalidRequest.of("template_id", "is required, or image_id and code_path in its place (not both)")
        if body.template_id is None and body.image_id is None:
            raise InvalidRequest.of("image_id", "is required together with code_path")
        if body.template_id is not None:
            for name in ("image_id", "command"):
                if getattr(body, name) is not None:
                    raise InvalidRequest.of(name, "cannot be given together with template_id: the template says it")
        elif body.template_version is not None:
            raise InvalidRequest.of("template_version", "goes with template_id")
        fresh = None
        if body.template_id is None:
            fresh = await self._make_template(actor, body)
        template, version = self._templates.version_of(actor, fresh or body.template_id or 0, body.template_version)
        try:
            return self.view(await self._insert(actor, body, template.id, version, request))
        except BaseException:
            if fresh is not None:
                await self._templates.delete(actor, fresh, force=True)
            raise

    def get(self, actor: Actor, train_id: int) -> Json:
        actor.require(READ)
        return self.view(owned(self._store, actor, Train, train_id))

    async def wait(self, actor: Actor, train_id: int, state_not: str, seconds: float) -> Json:
        """Return the job once its state is another than ``state_not``, or after ``seconds``."""
        actor.require(READ)
        owned(self._store, actor, Train, train_id)
        check_states(state_not, STATES)

        def state() -> str | None:
            record = self._store.get(Train, train_id)
            return None if record is None else record.state

        await self._waiters.state_not("train", train_id, state, state_not, seconds)
        return self.get(actor, train_id)

    def list(
        self, actor: Actor, *, limit: int, after: str | None, name: str | None, state: str | None, owner: str | None,
        template_id: int | None = None,
    ) -> Json:
        actor.require(READ)
        check_states(state, STATES)
        page = self._store.page(
            Train, limit, after, owner=actor.list_owner(owner), name=name, state=state, template_id=template_id
        )
        return answer_page(page, self.view)

    def patch(self, actor: Actor, train_id: int, body: PatchTrain) -> Json:
        actor.require(WRITE)
        train = owned(self._store, actor, Train, train_id)
        given = body.given()
        for name, value in given.items():
            if value is None:
                raise InvalidRequest.of(name, "must not be null; leave it out to keep it as it is")
        changed = self._store.update(train, lambda _: given)
        if changed is None:
            raise not_found()
        self._parts.reconciler.schedule()
        return self.view(changed)

    async def start(self, actor: Actor, train_id: int) -> Json:
        """Queue a new attempt, or let a paused one go on."""
        actor.require(WRITE)
        train = owned(self._store, actor, Train, train_id)
        if train.status is Status.STOPPING or train.state == Status.STOPPING:
            raise InvalidState(f"Train {train_id} is stopping; start it again once it is {_after_stop(train)}.")
        frozen = train.status is Status.PAUSED
        changed = self._aim(train, lambda now: {} if now.target is Target.RUNNING else {"target": Target.RUNNING})
        if frozen:
            changed = await self._settle(changed, lambda now: now.status is not Status.PAUSED)
        return self.view(changed)

    async def pause(self, actor: Actor, train_id: int, body: PauseTrain) -> Json:
        """Freeze, or suspend: save within the grace time, free everything, go on later from the newest checkpoint."""
        actor.require(WRITE)
        train = owned(self._store, actor, Train, train_id)
        can_freeze = Ability.FREEZE in self._parts.runtime.abilities
        mode = body.mode
        if mode == "freeze" and not can_freeze:
            raise NotSupported("This runtime cannot freeze a job. Use {\"mode\": \"suspend\"}: it saves, stops and frees all.")
        if mode is None:
            if train.status in (Status.PAUSED, Status.SUSPENDED) and train.target is not Target.RUNNING:
                return self.view(train)
            mode = "freeze" if can_freeze and train.status is not Status.QUEUED else "suspend"
        if mode == "freeze":
            return await self._freeze(train)
        return self._suspend(train, body.grace_seconds)

    def stop(self, actor: Actor, train_id: int, body: StopTrain) -> Json:
        """End the current attempt: SIGTERM, grace, SIGKILL. What does not run stays as it is."""
        actor.require(WRITE)
        train = owned(self._store, actor, Train, train_id)

        def change(now: Train) -> Mapping[str, Any]:
            if now.status in FINAL | {Status.CREATED} and now.target is not Target.RUNNING:
                return {}
            return {"target": Target.STOPPED, **_grace(body.grace_seconds)}

        return self.view(self._aim(train, change))

    async def delete(self, actor: Actor, train_id: int) -> None:
        """Stop what runs, then remove the job with its files."""
        actor.require(WRITE)
        train = owned(self._store, actor, Train, train_id)
        changed = self._aim(train, lambda now: {"target": Target.DELETED})
        await self._parts.reconciler.settled(changed, DELETE_SECONDS, lambda now: now is None)

    # What a job says of itself

    def progress(self, actor: Actor, train_id: int) -> Json:
        actor.require(READ)
        return self._parts.monitor.progress(owned(self._store, actor, Train, train_id))

    async def metrics(self, actor: Actor, train_id: int, tags: list[str] | None, max_points: int) -> bytes:
        """Return the series as JSON text."""
        actor.require(READ)
        train = owned(self._store, actor, Train, train_id)
        return self._parts.monitor.tracker(train).series(tags, max_points)

    def compare(self, actor: Actor, ids: str, tag: str, max_points: int) -> bytes:
        """Return one tag of several jobs as JSON text; each series names its job by ``train_id``."""
        actor.require(READ)
        if not ids or not all(text.isascii() and text.isdigit() and len(text) <= 18 for text in ids.split(",")):
            raise InvalidRequest.of("ids", "must be ids of jobs, separated by commas")
        series = []
        for train_id in dict.fromkeys(int(text) for text in ids.split(",")):
            train = owned(self._store, actor, Train, train_id)
            found = orjson.loads(self._parts.monitor.tracker(train).series([tag], max_points))["series"]
            series += [{"train_id": train_id, **item} for item in found]
        return orjson.dumps({"series": series})

    def checkpoints(self, actor: Actor, train_id: int) -> Json:
        actor.require(READ)
        train = owned(self._store, actor, Train, train_id)
        return {"items": [item.as_json() for item in list_checkpoints(self._parts, train)], "next": None}

    def log(self, actor: Actor, train_id: int) -> tuple[Train, Path]:
        """Return the job and where its log lies; the file may not be there yet."""
        actor.require(READ)
        train = owned(self._store, actor, Train, train_id)
        return train, self._parts.monitor.log_path(train)

    def report(self, train_id: int, token: str, body: bytes, expected: Any) -> None:
        """Take in a report of the job's own code; ``expected(train_id, attempt)`` is the token it must show."""
        train = self._store.get(Train, train_id)
        if train is None or train.status not in HOLDING or token != expected(train_id, train.attempt):
            raise Forbidden("This token does not belong to a running attempt of this job.")
        self._parts.monitor.report(train, parse_report(body))

    def view(self, train: Train) -> Json:
        wait = self._parts.scheduler.waits.get(("train", train.id))
        return views.train_json(train, self._parts.monitor.progress(train), wait)

    # Helpers

    async def _make_template(self, actor: Actor, body: CreateTrain) -> int:
        made = await self._templates.create(
            actor,
            CreateTemplate(
                name=body.name, image_id=body.image_id, code_path=body.code_path, command=body.command,
                gpus=body.gpus or 0, description="",
            ),
        )
        return made["id"]

    async def _insert(self, actor: Actor, body: CreateTrain, template_id: int, version: Any, request: Any) -> Train:
        image = self._store.get(Image, version.image_id)
        if image is None:
            raise InvalidState(f"The image of template {template_id} has left the catalogue; edit the template's image_id.")
        settings = self._parts.settings
        gpus = version.gpus if body.gpus is None else body.gpus
        if image.gpu and gpus == 0:
            raise InvalidRequest.of("gpus", f"image {image.name} needs a GPU: ask for at least 1")
        if body.nodes > 1 and not body.dist:
            raise InvalidRequest.of("nodes", "more than one node needs dist true")
        if body.nodes > 1 and Ability.TASKS not in self._parts.runtime.abilities:
            raise NotSupported("This runtime runs one container a job: leave nodes at 1.")
        amount = Amount(1, gpus, body.cpus or 0.0, body.memory_bytes or 0)
        self._parts.check_amount(actor.name, amount, body.nodes)
        parameters = fill_parameters(version.parameters, body.parameters)
        dataset = body.dataset or version.data_path
        mounts: dict[str, Any] = {}
        if dataset:
            located = self._parts.locate(actor, dataset, "dataset")
            mounts["dataset"] = located.as_dict()
            dataset = located.path
        model = await self._model(actor, body, version)
        if "mount" in model:
            mounts["model"] = model.pop("mount")
        tree = self._parts.storage.tree_path(version.tree)
        command = version.command or find_command((), version.manifest, [entry.name for entry in tree.iterdir()])
        return self._store.insert(
            Train,
            request,
            owner=actor.name,
            name=body.name,
            description=body.description,
            gpus=gpus,
            cpus=body.cpus or settings.default_cpus,
            memory_bytes=body.memory_bytes or settings.default_memory_bytes,
            image_id=image.id,
            image_reference=image.reference,
            template_id=template_id,
            template_version=version.version,
            tree=version.tree,
            command=list(command),
            manifest=dict(version.manifest),
            dataset=dataset,
            dist=body.dist,
            nodes=body.nodes,
            processes=body.processes or max(gpus, 1),
            parameters=parameters,
            priority=body.priority,
            max_restarts=body.max_restarts,
            deadline_seconds=body.deadline_seconds,
            grace_seconds=body.grace_seconds,
            mounts=mounts,
            **model,
        )

    async def _model(self, actor: Actor, body: CreateTrain, version: Any) -> dict[str, Any]:
        """Find the model to start from: another job's checkpoint, a path, the template's, or none."""
        if body.checkpoint_of is not None:
            if body.model_path:
                raise InvalidRequest.of("model_path", "cannot be given together with checkpoint_of")
            source = self._store.get(Train, body.checkpoint_of)
            if source is None or not (actor.is_admin or source.owner == actor.name):
                raise NotFound("There is no such train to take a checkpoint of, or it is not yours.",
                               [FieldError("checkpoint_of", "is not a train of yours")])
            chosen = choose_checkpoint(self._parts, source, body.checkpoint)
            model = await asyncio.to_thread(self._parts.storage.keep_model, Path(chosen.host))
            return {"checkpoint_of": source.id, "checkpoint": chosen.name, "model": model, "model_path": ""}
        if body.checkpoint is not None:
            raise InvalidRequest.of("checkpoint", "goes with checkpoint_of: it names a checkpoint of that train")
        if body.model_path:
            located = self._parts.locate(actor, body.model_path, "model_path", "file")
            return {"model_path": located.path, "model": None, "mount": located.as_dict()}
        return {"model_path": version.model_path, "model": version.model}

    async def _freeze(self, train: Train) -> Json:
        def change(now: Train) -> Mapping[str, Any]:
            going = now.status in (Status.STARTING, Status.RUNNING, Status.PAUSED)
            if not going or now.target not in (Target.RUNNING, Target.PAUSED):
                raise _cannot("freeze", now)
            return {"target": Target.PAUSED}

        changed = self._aim(train, change)
        return self.view(await self._settle(changed, lambda now: now.status is not Status.RUNNING))

    def _suspend(self, train: Train, grace_seconds: float | None) -> Json:
        def change(now: Train) -> Mapping[str, Any]:
            if now.status is Status.SUSPENDED and now.target is not Target.RUNNING or now.target is Target.SUSPENDED:
                return {}
            going = now.status in (Status.QUEUED, Status.STARTING, Status.RUNNING, Status.PAUSED)
            if not going or now.target in (Target.STOPPED, Target.DELETED):
                raise _cannot("suspend", now)
            return {"target": Target.SUSPENDED, **_grace(grace_seconds)}

        return self.view(self._aim(train, change))

    def _aim(self, train: Train, change: Any) -> Train:
        changed = self._store.update(train, change)
        if changed is None:
            raise not_found()
        self._parts.reconciler.hint("train", train.id)
        return changed

    async def _settle(self, train: Train, until: Any) -> Train:
        settled = await self._parts.reconciler.settled(train, SETTLE_SECONDS, lambda now: now is None or until(now))
        if settled is None:
            raise not_found()
        return settled  # type: ignore[return-value]


def _grace(seconds: float | None) -> dict[str, Any]:
    return {} if seconds is None else {"grace_seconds": seconds}


def _after_stop(train: Train) -> str:
    return "suspended" if train.target is Target.SUSPENDED else "stopped"


def _cannot(verb: str, train: Train) -> InvalidState:
    return InvalidState(f"Train {train.id} is {train.state}, so there is nothing to {verb}; start it first.")
