"""Templates: recipes for training, each version a snapshot of its code."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airhub.domain.kinds import find_command
from airhub.domain.lifecycle import FINAL
from airhub.domain.models import Template, TemplateVersion, Train
from airhub.errors import Conflict, InvalidRequest, InvalidState, NotFound
from airhub.manifest import check_parameter_schema, read_manifest
from airhub.store import RequestKey, tables
from airhub.usecases import views
from airhub.usecases.access import READ, WRITE, Actor, not_found, owned
from airhub.usecases.base import Json, Parts, answer_page, created_before
from airhub.usecases.requests import CreateTemplate, PatchTemplate


class Templates:
    """What a person may do with templates."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._store = parts.store
        self._storage = parts.storage

    async def create(self, actor: Actor, body: CreateTemplate, request: RequestKey | None = None) -> Json:
        """Make a template from code on disk, or from a trained job and one of its checkpoints."""
        actor.require(WRITE)
        made = created_before(self._store, Template, request)
        if made is not None:
            return self.view(made)
        fields = await self._fields(actor, body)
        with self._store.transaction():
            template = self._store.insert(
                Template,
                request,
                owner=actor.name,
                name=body.name,
                description=body.description,
                version=1,
                source_train_id=body.train_id,
            )
            self._add_version(template.id, 1, fields)
        return self.view(template)

    def get(self, actor: Actor, template_id: int) -> Json:
        actor.require(READ)
        return self.view(owned(self._store, actor, Template, template_id))

    def list(self, actor: Actor, *, limit: int, after: str | None, name: str | None, owner: str | None) -> Json:
        actor.require(READ)
        page = self._store.page(Template, limit, after, owner=actor.list_owner(owner), name=name)
        return answer_page(page, self.view)

    async def patch(self, actor: Actor, template_id: int, body: PatchTemplate) -> Json:
        """Edit: what is in versions makes the next version, name and description do not."""
        actor.require(WRITE)
        template = owned(self._store, actor, Template, template_id)
        given = body.given()
        nulls = [name for name, value in given.items() if value is None]
        if nulls:
            raise InvalidRequest.of(nulls[0], "must not be null; leave it out to keep it as it is")
        changes = {name: given[name] for name in ("name", "description") if name in given}
        versioned = {name: value for name, value in given.items() if name not in ("name", "description")}
        if versioned:
            return self.view(await self._next_version(actor, template, versioned, changes))
        changed = self._store.update(template, lambda _: changes)
        if changed is None:
            raise not_found()
        return self.view(changed)

    async def delete(self, actor: Actor, template_id: int, force: bool = False) -> None:
        """Remove a template; unfinished trains that use it stand in the way unless ``force``."""
        actor.require(WRITE)
        template = owned(self._store, actor, Template, template_id)
        if not force:
            busy = [
                train.id
                for train in self._store.find(Train, template_id=template_id)
                if train.status not in FINAL and str(train.target) != "deleted"
            ]
            if busy:
                raise Conflict(
                    f"Train {', '.join(map(str, busy[:5]))} {'uses' if len(busy) == 1 else 'use'} this template and "
                    "has not ended. Stop or delete it first, or delete with ?force=true: jobs keep their copy of the code."
                )
        drafts = self._store.rows(tables.drafts, template_id=template_id)
        trees = {row["tree"] for row in self._store.rows(tables.template_versions, template_id=template_id)}
        self._store.delete(template)
        await asyncio.to_thread(self._drop_files, trees - self._store.trees_in_use(), drafts)

    def versions(self, actor: Actor, template_id: int, *, limit: int, after: str | None) -> Json:
        """List the versions, newest first."""
        actor.require(READ)
        owned(self._store, actor, Template, template_id)
        from airhub.store.store import make_cursor, read_cursor

        below = read_cursor(after) if after is not None else None
        rows = self._store.rows(tables.template_versions, order="-version", template_id=template_id)
        found = [row for row in rows if below is None or row["version"] < below]
        items = [views.version_json(_version(row)) for row in found[:limit]]
        return {"items": items, "next": make_cursor(found[limit - 1]["version"]) if len(found) > limit else None}

    async def diff(self, actor: Actor, template_id: int, old: int, new: int) -> Json:
        """Say which files differ between two versions, and how."""
        actor.require(READ)
        owned(self._store, actor, Template, template_id)
        trees = []
        for version in (old, new):
            found = self._store.template_version(template_id, version)
            if found is None:
                raise NotFound(f"This template has no version {version}.")
            trees.append(found.tree)
        return {"items": await asyncio.to_thread(self._storage.diff_trees, *trees), "next": None}

    def version_of(self, actor: Actor, template_id: int, version: int | None) -> tuple[Template, TemplateVersion]:
        """Return a template of the actor's and one of its versions (null: the newest)."""
        template = self._store.get(Template, template_id) if template_id < 2**63 else None
        if template is None or not (actor.is_admin or template.owner == actor.name):
            raise NotFound("There is no such template, or it is not yours.")
        found = self._store.template_version(template_id, version or template.version)
        if found is None:
            raise NotFound(f"Template {template_id} has no version {version}; its newest is {template.version}.")
        return template, found

    # Editing by a draft

    async def open_draft(self, actor: Actor, template_id: int) -> tuple[Template, Path]:
        """Return the folder with a writable copy of the newest version's code, made if there is none."""
        actor.require(WRITE)
        template, version = self.version_of(actor, template_id, None)
        rows = self._store.rows(tables.drafts, template_id=template_id)
        if rows:
            return template, Path(rows[0]["folder"])
        folder = await asyncio.to_thread(self._storage.make_draft, template.owner, template_id, version.tree)
        self._store.put(
            tables.drafts, template_id=template_id, folder=str(folder), debug_id=None, created_at=self._parts.clock()
        )
        return template, folder

    def draft_debug(self, template_id: int) -> int | None:
        rows = self._store.rows(tables.drafts, template_id=template_id)
        return rows[0]["debug_id"] if rows else None

    def set_draft_debug(self, template_id: int, debug_id: int) -> None:
        row = self._store.rows(tables.drafts, template_id=template_id)[0]
        self._store.put(tables.drafts, **{**row, "debug_id": debug_id})

    async def publish_draft(self, actor: Actor, template_id: int) -> Json:
        """Make the draft's code the next version."""
        actor.require(WRITE)
        template, _ = self.version_of(actor, template_id, None)
        rows = self._store.rows(tables.drafts, template_id=template_id)
        if not rows:
            raise InvalidState("No draft of this template is open: call with edit_code true first.")
        tree = await asyncio.to_thread(self._storage.snapshot_folder, Path(rows[0]["folder"]), "edit_code")
        changed = await self._next_version(actor, template, {"tree": tree.hash}, {})
        self._store.drop(tables.drafts, template_id=template_id)
        await asyncio.to_thread(self._drop_files, set(), rows)
        return self.view(changed)

    def view(self, template: Template) -> Json:
        version = self._store.template_version(template.id, template.version)
        assert version is not None, "a template has its newest version"
        return views.template_json(template, version)

    # Helpers

    async def _fields(self, actor: Actor, body: CreateTemplate) -> dict[str, Any]:
        if body.train_id is not None:
            mixed = [name for name in ("code_path", "image_id", "model_path") if getattr(body, name)]
            if mixed:
                raise InvalidRequest.of(mixed[0], "cannot be given together with train_id: the job brings its own")
            return await self._fields_from_train(actor, body)
        if body.checkpoint is not None:
            raise InvalidRequest.of("checkpoint", "goes with train_id: it names one of that job's checkpoints")
        for name in ("image_id", "code_path"):
            if getattr(body, name) is None:
                raise InvalidRequest.of(name, "is required, unless the template is made from a train_id")
        assert body.image_id is not None and body.code_path is not None
        self._parts.image_for(body.image_id, "train")
        fields = {
            "image_id": body.image_id,
            "gpus": body.gpus,
            **await self._code(actor, body.code_path, body.command),
            **await self._model(actor, body.model_path),
            **self._data(actor, body.data_path),
        }
        if body.parameters is not None:
            fields["parameters"] = check_parameter_schema(body.parameters, "parameters")
        return fields

    async def _fields_from_train(self, actor: Actor, body: CreateTemplate) -> dict[str, Any]:
        from airhub.usecases.checkpoints import choose_checkpoint

        train = self._store.get(Train, body.train_id or 0)
        if train is None or not (actor.is_admin or train.owner == actor.name):
            raise NotFound("There is no such train, or it is not yours.")
        checkpoint = choose_checkpoint(self._parts, train, body.checkpoint)
        model = await asyncio.to_thread(self._storage.keep_model, Path(checkpoint.host))
        source = self._store.template_version(train.template_id or 0, train.template_version or 0)
        return {
            "image_id": train.image_id,
            "code_path": source.code_path if source else "",
            "tree": train.tree,
            "model_path": f"trains/{train.id}/{checkpoint.name}",
            "model": model,
            "data_path": body.data_path or train.dataset,
            "command": list(body.command or train.command),
            "parameters": body.parameters or (source.parameters if source else train.manifest.get("parameters", {})),
            "gpus": body.gpus or train.gpus,
            "manifest": dict(train.manifest),
            "source_train_id": train.id,
            "source_checkpoint": checkpoint.name,
        }

    async def _code(self, actor: Actor, path: str, command: list[str] | None) -> dict[str, Any]:
        located = self._parts.locate(actor, path, "code_path")
        tree = await asyncio.to_thread(self._storage.snapshot, located, "code_path")
        found = self._runnable(tree.hash, command)
        if not found["command"]:
            raise InvalidRequest.of(
                "code_path",
                "there is nothing to run: give a command, or put a template.json with one, train.py, main.py or run.sh "
                f"into {located.path}",
            )
        return {"code_path": located.path, "tree": tree.hash, **found}

    def _runnable(self, tree: str, command: list[str] | None) -> dict[str, Any]:
        folder = self._storage.tree_path(tree)
        manifest = read_manifest(folder)
        files = [entry.name for entry in folder.iterdir() if entry.is_file()]
        return {
            "command": list(find_command(command or (), manifest, files)),
            "manifest": manifest,
            "parameters": manifest.get("parameters", {}),
        }

    async def _model(self, actor: Actor, path: str) -> dict[str, Any]:
        if not path:
            return {"model_path": "", "model": None}
        located = self._parts.locate(actor, path, "model_path", "file")
        return {"model_path": located.path, "model": await asyncio.to_thread(self._storage.keep_model, located.host)}

    def _data(self, actor: Actor, path: str) -> dict[str, Any]:
        return {"data_path": self._parts.locate(actor, path, "data_path").path if path else ""}

    async def _next_version(
        self, actor: Actor, template: Template, given: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> Template:
        newest = self._store.template_version(template.id, template.version)
        assert newest is not None, "a template has its newest version"
        fields: dict[str, Any] = {
            name: getattr(newest, name)
            for name in (
                "image_id code_path tree model_path model data_path parameters gpus manifest source_train_id "
                "source_checkpoint"
            ).split()
        }
        fields["command"] = list(newest.command)
        if "image_id" in given:
            self._parts.image_for(given["image_id"], "train")
            fields["image_id"] = given["image_id"]
        if "code_path" in given:
            fields |= await self._code(actor, given["code_path"], given.get("command"))
        elif "tree" in given:
            found = self._runnable(given["tree"], None)
            fields |= {"tree": given["tree"], "manifest": found["manifest"], "parameters": found["parameters"]}
            fields["command"] = found["command"] or fields["command"]
        if given.get("command"):
            fields["command"] = given["command"]
        if "model_path" in given:
            fields |= await self._model(actor, given["model_path"])
            fields |= {"source_train_id": None, "source_checkpoint": None}
        if "data_path" in given:
            fields |= self._data(actor, given["data_path"])
        if "parameters" in given:
            fields["parameters"] = check_parameter_schema(given["parameters"], "parameters")
        if "gpus" in given:
            fields["gpus"] = given["gpus"]

        with self._store.transaction():
            changed = self._store.update(template, lambda now: {**changes, "version": now.version + 1})
            if changed is None:
                raise not_found()
            self._add_version(changed.id, changed.version, fields)
        return changed

    def _add_version(self, template_id: int, version: int, fields: Mapping[str, Any]) -> None:
        self._store.put(
            tables.template_versions,
            template_id=template_id,
            version=version,
            created_at=self._parts.clock(),
            **{"parameters": {}, "manifest": {}, **fields},
        )

    def _drop_files(self, trees: set[str], drafts: list[dict[str, Any]]) -> None:
        for tree in trees:
            self._storage.drop_tree(tree)
        for draft in drafts:
            self._storage.remove_folder(Path(draft["folder"]))


def _version(row: Mapping[str, Any]) -> TemplateVersion:
    return TemplateVersion(**{**row, "command": tuple(row["command"])})


