"""The catalogue of images: users pick from it, admins keep it."""

from __future__ import annotations

import time
from typing import Any

from airhub.domain.lifecycle import HOLDING, Status
from airhub.domain.models import Image, Inference, Train, Workspace
from airhub.errors import Conflict, InvalidRequest, RuntimeUnavailable
from airhub.store import RequestKey
from airhub.usecases import views
from airhub.usecases.access import ADMIN, READ, Actor, not_found
from airhub.usecases.base import Json, Parts, created_before
from airhub.usecases.requests import CreateImage, PatchImage

AVAILABLE_FOR_SECONDS = 5.0
"""How long the engine's word on an image is believed."""


class Images:
    """What a person may do with the catalogue."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._store = parts.store
        self._available: dict[str, tuple[float, bool | None]] = {}

    async def list(self, actor: Actor, *, limit: int, after: str | None, name: str | None, kind: str | None) -> Json:
        actor.require(READ)
        found, following = self._store.page(Image, limit, after, name=name)
        return {
            "items": [await self.view(image) for image in found if kind is None or kind in image.kinds],
            "next": following,
        }

    async def get(self, actor: Actor, image_id: int) -> Json:
        actor.require(READ)
        return await self.view(self.find(image_id))

    def find(self, image_id: int) -> Image:
        image = self._store.get(Image, image_id) if image_id < 2**63 else None
        if image is None:
            raise not_found()
        return image

    async def create(self, actor: Actor, body: CreateImage, request: RequestKey | None = None) -> Json:
        actor.require(ADMIN)
        made = created_before(self._store, Image, request)
        if made is None:
            self._check_name(body.name, None)
            made = self._store.insert(
                Image,
                request,
                name=body.name,
                reference=body.reference,
                kinds=list(dict.fromkeys(body.kinds)),
                gpu=body.gpu,
                description=body.description,
            )
        return await self.view(made)

    async def patch(self, actor: Actor, image_id: int, body: PatchImage) -> Json:
        actor.require(ADMIN)
        image = self.find(image_id)
        given = body.given()
        for name, value in given.items():
            if value is None:
                raise InvalidRequest.of(name, "must not be null; leave it out to keep it as it is")
        if "name" in given:
            self._check_name(given["name"], image.id)
        changed = self._store.update(image, lambda _: given)
        if changed is None:
            raise not_found()
        return await self.view(changed)

    def delete(self, actor: Actor, image_id: int) -> None:
        """Take an image out of the catalogue, not off the engine."""
        actor.require(ADMIN)
        image = self.find(image_id)
        for record_type in (Train, Inference, Workspace):
            busy = self._store.find(record_type, image_id=image.id, status=[*HOLDING, Status.QUEUED], limit=1)
            if busy:
                raise Conflict(f"{record_type.__name__} {busy[0].id} uses this image. Stop it first.")
        self._store.delete(image)

    def seed(self, images: list[dict[str, Any]]) -> None:
        """Fill an empty catalogue with what AirHub ships."""
        if self._store.count(Image) == 0:
            for image in images:
                self._store.insert(Image, **image)

    async def view(self, image: Image) -> Json:
        return views.image_json(image, await self._is_available(image.reference))

    async def _is_available(self, reference: str) -> bool | None:
        checked, answer = self._available.get(reference, (0.0, None))
        if time.monotonic() - checked > AVAILABLE_FOR_SECONDS:
            try:
                answer = await self._parts.runtime.image_available(reference)
            except RuntimeUnavailable:
                answer = None
            self._available[reference] = (time.monotonic(), answer)
        return answer

    def _check_name(self, name: str, own_id: int | None) -> None:
        if any(image.id != own_id for image in self._store.find(Image, name=name)):
            raise Conflict(f"The catalogue has an image named {name} already. Choose another name, or change that one.")
