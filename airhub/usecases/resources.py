"""What there is, what is in use and by whom, what waits; quotas."""

from __future__ import annotations

from typing import Any

from airhub.domain.lifecycle import Status
from airhub.domain.models import Train
from airhub.domain.resources import Amount, Bounds
from airhub.errors import InvalidRequest
from airhub.scheduler import by_owner, total
from airhub.store import Store, tables
from airhub.usecases.access import ADMIN, READ, Actor
from airhub.usecases.base import Json, Parts
from airhub.usecases.requests import Quota


class Quotas:
    """Quotas of users and groups, as admins set them over the operator's defaults."""

    def __init__(self, store: Store, default: Bounds, groups_of: Any):
        self._store = store
        self._default = default
        self._groups_of = groups_of
        self._cache: dict[str, Bounds] | None = None

    def bounds(self, owner: str) -> Bounds:
        """Return the quota of a user: their own, else the widest of their groups', else the default."""
        limits = self._all()
        if f"user:{owner}" in limits:
            return limits[f"user:{owner}"]
        of_groups = [limits[f"group:{name}"] for name in self._groups_of(owner) if f"group:{name}" in limits]
        if not of_groups:
            return self._default
        widest = of_groups[0]
        for bounds in of_groups[1:]:
            widest = widest.loosest(bounds)
        return widest

    def set(self, subject: str, bounds: Bounds, now: Any) -> None:
        self._store.put(tables.quotas, subject=subject, limits=bounds_json(bounds), updated_at=now)
        self._cache = None

    def remove(self, subject: str) -> None:
        self._store.drop(tables.quotas, subject=subject)
        self._cache = None

    def list(self) -> list[Json]:
        rows = self._store.rows(tables.quotas, order="subject")
        return [{"subject": row["subject"], **row["limits"]} for row in rows]

    def _all(self) -> dict[str, Bounds]:
        if self._cache is None:
            self._cache = {row["subject"]: Bounds(**row["limits"]) for row in self._store.rows(tables.quotas)}
        return self._cache


class Resources:
    """What a person may see of resources, and what admins may set."""

    def __init__(self, parts: Parts, quotas: Quotas):
        self._parts = parts
        self._quotas = quotas

    def show(self, actor: Actor) -> Json:
        """Return totals, use and queue. Others are named to admins only."""
        actor.require(READ)
        capacity = self._parts.capacity()
        claims = self._parts.scheduler.holding()
        held = total(claims)
        owners = by_owner(claims)
        queued = self._parts.store.find(Train, status=Status.QUEUED)
        waits = self._parts.scheduler.waits
        holders = {device: claim.owner for claim in claims for device in claim.gpu_ids}
        return {
            "gpus": {
                "total": len(capacity.gpu_ids),
                "in_use": held.gpus,
                "devices": [
                    {"id": device, "owner": _shown(actor, holders.get(device)), "free": device not in holders}
                    for device in capacity.gpu_ids
                ],
            },
            "cpus": {"total": capacity.cpus, "in_use": held.cpus},
            "memory_bytes": {"total": capacity.memory_bytes, "in_use": held.memory_bytes},
            "slots": {"total": capacity.slots, "in_use": held.slots},
            "by_owner": [
                {"owner": owner, **amount_json(amount)}
                for owner, amount in sorted(owners.items())
                if actor.is_admin or owner == actor.name
            ],
            "queued": [
                {
                    "kind": "train",
                    "id": train.id if actor.is_admin or train.owner == actor.name else None,
                    "owner": _shown(actor, train.owner),
                    "gpus": train.gpus * train.nodes,
                    "priority": train.priority,
                    "reason": wait.reason if (wait := waits.get(("train", train.id))) else None,
                    "message": wait.message if wait else None,
                }
                for train in queued
            ],
            "quota": {
                **bounds_json(self._quotas.bounds(actor.name)),
                "in_use": amount_json(owners.get(actor.name, Amount())),
            },
        }

    def quotas(self, actor: Actor) -> Json:
        actor.require(ADMIN)
        return {"items": self._quotas.list(), "next": None}

    def set_quota(self, actor: Actor, kind: str, name: str, body: Quota) -> Json:
        actor.require(ADMIN)
        subject = _subject(kind, name)
        self._quotas.set(subject, Bounds(**body.model_dump()), self._parts.clock())
        self._parts.reconciler.schedule()
        return {"subject": subject, **body.model_dump()}

    def remove_quota(self, actor: Actor, kind: str, name: str) -> None:
        actor.require(ADMIN)
        self._quotas.remove(_subject(kind, name))
        self._parts.reconciler.schedule()


def bounds_json(bounds: Bounds) -> Json:
    return {
        "running_trains": bounds.running_trains,
        "gpus": bounds.gpus,
        "cpus": bounds.cpus,
        "memory_bytes": bounds.memory_bytes,
    }


def amount_json(amount: Amount) -> Json:
    return {
        "running_trains": amount.slots,
        "gpus": amount.gpus,
        "cpus": amount.cpus,
        "memory_bytes": amount.memory_bytes,
    }


def _subject(kind: str, name: str) -> str:
    if kind not in ("user", "group"):
        raise InvalidRequest.of("subject", "must begin with user or group")
    return f"{kind}:{name}"


def _shown(actor: Actor, owner: str | None) -> str | None:
    return owner if owner is None or actor.is_admin or owner == actor.name else "somebody"
