"""What all use cases share: the parts that they are handed, and the ways of paging, creating once and waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airhub.domain.models import Image, Runnable, Train
from airhub.domain.resources import Amount, Bounds, Capacity, never_fits
from airhub.errors import FieldError, InvalidRequest, NotFound, QuotaExceeded
from airhub.monitor import Monitor
from airhub.reconciler import Reconciler
from airhub.runtimes.base import Ability, Runtime
from airhub.scheduler import Scheduler
from airhub.storage import Located, Storage
from airhub.store import RequestKey, Store
from airhub.usecases.access import Actor

Json = dict[str, Any]
LONGEST_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    """What the operator decides and use cases need."""

    default_cpus: float | None
    default_memory_bytes: int | None
    public_prefix: str
    """Path of the service below the Hub's URL, with a slash at its end."""
    single_image: str | None
    """Name of the one image of a runtime without images; null where there is a catalogue."""


@dataclass(frozen=True)
class Parts:
    """The parts of AirHub that use cases work with, joined in ``app.py``."""

    store: Store
    storage: Storage
    runtime: Runtime
    reconciler: Reconciler
    scheduler: Scheduler
    monitor: Monitor
    capacity: Callable[[], Capacity]
    bounds: Callable[[str], Bounds]
    clock: Callable[[], datetime]
    settings: Settings

    def image_for(self, image_id: int, kind: str, field: str = "image_id") -> Image:
        """Return an image of the catalogue that may be used for ``kind``."""
        image = self.store.get(Image, image_id)
        if image is None:
            raise NotFound(f"There is no image {image_id}; GET /images lists what there is.",
                           [FieldError(field, "is not an image of the catalogue")])
        if kind not in image.kinds:
            raise InvalidRequest.of(field, f"image {image.name} is not for a {kind}; it is for {', '.join(image.kinds)}")
        return image

    def check_amount(self, owner: str, each: Amount, tasks: int = 1) -> None:
        """Refuse what can never fit (422) and what one's quota can never allow (403)."""
        capacity = self.capacity()
        whole = Amount(each.slots, each.gpus * tasks, each.cpus * tasks, each.memory_bytes * tasks)
        errors = never_fits(whole, capacity)
        if each.gpus and Ability.GPUS not in self.runtime.abilities and not errors:
            errors = [FieldError("gpus", "this runtime cannot give GPUs; leave gpus at 0")]
        if errors:
            raise InvalidRequest(f"{errors[0].field} {errors[0].message}.", errors)
        over = self.bounds(owner).exceeded_by(whole)
        if over:
            raise QuotaExceeded(
                f"This asks for more {over[0]} than your quota ever allows; GET /resources shows it. Ask for less, or ask an admin."
            )

    def locate(self, actor: Actor, path: str, field: str, kind: str | None = None) -> Located:
        """Find what a user's path names; ``kind`` may ask for a ``directory`` or a ``file``."""
        located = self.storage.locate(
            actor.name, path, field=field, templates=lambda i, v: self._tree_of(actor, i, v),
            trains=lambda i: self._train_owner(actor, i),
        )
        if kind is not None and located.kind != kind:
            raise InvalidRequest.of(field, f"{path} is a {located.kind}; a {kind} is needed")
        return located

    def _tree_of(self, actor: Actor, template_id: int, version: int) -> str | None:
        from airhub.domain.models import Template

        template = self.store.get(Template, template_id)
        if template is None or not (actor.is_admin or template.owner == actor.name):
            return None
        found = self.store.template_version(template_id, version)
        return None if found is None else found.tree

    def _train_owner(self, actor: Actor, train_id: int) -> str | None:
        train = self.store.get(Train, train_id)
        return train.owner if train is not None and (actor.is_admin or train.owner == actor.name) else None


class Waiters:
    """Wakes requests that wait for a record to change its state; fed by the store's events."""

    def __init__(self, store: Store):
        self._waiting: dict[tuple[str, int], asyncio.Event] = {}
        store.on_events(self._wake)

    async def state_not(self, kind: str, record_id: int, state: Callable[[], str | None], unwanted: str, seconds: float) -> None:
        """Return when ``state()`` is not ``unwanted``, or after ``seconds``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while state() == unwanted and (left := deadline - loop.time()) > 0:
            event = self._waiting.setdefault((kind, record_id), asyncio.Event())
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                return

    def _wake(self, events: Any) -> None:
        for row in events:
            event = self._waiting.pop((row.data.get("kind"), row.data.get("id")), None)
            if event is not None:
                event.set()


def check_states(states: str | None, known: frozenset[str]) -> str | None:
    """Return a state to filter by; ``InvalidRequest`` when it is none of ``known``."""
    if states is not None and states not in known:
        raise InvalidRequest.of("state", f"is not a state; it is one of {', '.join(sorted(known))}")
    return states


def answer_page(page: tuple[list[Any], str | None], view: Callable[[Any], Json]) -> Json:
    records, following = page
    return {"items": [view(record) for record in records], "next": following}


def created_before(store: Store, record_type: type, request: RequestKey | None) -> Any:
    """Return what this idempotency key has made already; null when it is new or there is none."""
    if request is None:
        return None
    made = store.remembered(request)
    return None if made is None else store.get(record_type, made, deleted=True)


def defaults(settings: Settings, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return limits with the operator's defaults where the user named none."""
    return {
        "gpus": wanted.get("gpus") or 0,
        "cpus": wanted.get("cpus"),
        "memory_bytes": wanted.get("memory_bytes"),
    }


def runnable_amount(record: Runnable) -> Amount:
    return Amount(0, record.gpus, record.cpus or 0.0, record.memory_bytes or 0)
