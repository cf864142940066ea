"""Files as users see them: listing, download, upload, removal, below the roots of the contract."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from airhub.usecases.access import READ, WRITE, Actor
from airhub.usecases.base import Json, Parts


class Files:
    """What a person may do with files."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._storage = parts.storage

    async def list(self, actor: Actor, path: str, *, limit: int, after: str | None) -> Json:
        actor.require(READ)
        return await asyncio.to_thread(self._storage.list, actor.name, path, limit, after, **self._lookups(actor))

    async def names(self, actor: Actor, path: str) -> Json:
        """Return all entries of a folder with Airserver-2.0's list of names, folders ending in a slash."""
        actor.require(READ)
        entries: list[Json] = []
        after: str | None = None
        while True:
            page = await self.list(actor, path, limit=10_000, after=after)
            entries += page["entries"]
            after = page["next"]
            if after is None or len(entries) >= 100_000:
                break
        names = [entry["name"] + ("/" if entry["type"] == "directory" else "") for entry in entries]
        return {"files": names, "entries": entries}

    async def open(self, actor: Actor, path: str) -> Any:
        """Return an open file with its size and time."""
        actor.require(READ)
        return await asyncio.to_thread(self._storage.open_file, actor.name, path, **self._lookups(actor))

    async def delete(self, actor: Actor, path: str) -> None:
        actor.require(WRITE)
        await asyncio.to_thread(self._storage.delete, actor.name, path)

    async def save(self, actor: Actor, name: str, received: Path) -> Json:
        """Take in an upload that has been received whole."""
        actor.require(WRITE)
        return {"path": await asyncio.to_thread(self._storage.save_upload, actor.name, name, received)}

    def _lookups(self, actor: Actor) -> dict[str, Any]:
        return {
            "templates": lambda template_id, version: self._parts._tree_of(actor, template_id, version),
            "trains": lambda train_id: self._parts._train_owner(actor, train_id),
        }


