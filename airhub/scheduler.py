"""Who of the queue may start, from the records as they are; the decision itself is ``domain/resources.place``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from airhub.domain.lifecycle import HOLDING, Status, Target
from airhub.domain.models import Inference, Runnable, Train, Workspace
from airhub.domain.resources import Amount, Bounds, Capacity, Claim, Wait, place
from airhub.store import Store

FAIR_SHARE_HALF_LIFE_SECONDS = 3600.0


class Scheduler:
    """The ledger of GPUs, CPUs and memory, and the queue before them. Nothing is kept but what the records say."""

    def __init__(
        self,
        store: Store,
        capacity: Callable[[], Capacity],
        bounds: Callable[[str], Bounds],
        remaining_seconds: Callable[[Train], float | None],
        clock: Callable[[], datetime],
    ):
        self.waits: dict[tuple[str, int], Wait] = {}
        self._store = store
        self._capacity = capacity
        self._bounds = bounds
        self._remaining_seconds = remaining_seconds
        self._clock = clock
        self._used: dict[str, tuple[float, datetime]] = {}

    def grants(self) -> list[tuple[Runnable, dict[str, Any]]]:
        """Return the queued jobs that may start now with the changes that write down what each gets."""
        queued: list[Runnable] = [
            *self._store.find(Train, status=Status.QUEUED, target=Target.RUNNING),
            *self._store.find(Inference, status=Status.QUEUED, target=Target.RUNNING),
        ]
        if not queued:
            self.waits = {}
            return []
        now = self._clock()
        claims = [self._claim(job) for job in queued]
        quotas = {owner: self._bounds(owner) for owner in {claim.owner for claim in claims}}
        used = {owner: self._decayed(owner, now) for owner in quotas}
        grants, waits = place(claims, self.holding(), self._capacity(), quotas, used, now)
        self.waits = {(wait.claim.kind, wait.claim.id): wait for wait in waits}
        by_key = {(job.kind, job.id): job for job in queued}
        for grant in grants:
            self.charge(grant.claim.owner, 1.0)
        return [(by_key[grant.claim.kind, grant.claim.id], {"gpu_ids": list(grant.gpu_ids)}) for grant in grants]

    def next_look_seconds(self) -> float | None:
        """Return when a restart delay of the queue is over; null when none is waited for."""
        now = self._clock()
        delays = [
            (wait.claim.not_before - now).total_seconds()
            for wait in self.waits.values()
            if wait.reason == "restart_delay" and wait.claim.not_before is not None
        ]
        return min(delays, default=None)

    def holding(self) -> list[Claim]:
        """Return everybody's hold on resources."""
        jobs = [
            *self._store.find(Train, status=list(HOLDING)),
            *self._store.find(Inference, status=list(HOLDING)),
        ]
        servers = self._store.find(Workspace, status=list(HOLDING))
        return [*(self._claim(job) for job in jobs), *(_workspace_claim(server) for server in servers)]

    def free_gpus(self) -> list[str]:
        """Return the ids of the GPUs that nobody holds."""
        held = {device for claim in self.holding() for device in claim.gpu_ids}
        return [device for device in self._capacity().gpu_ids if device not in held]

    def charge(self, owner: str, seconds: float) -> None:
        """Count use against the owner's fair share; it is forgotten by half each hour."""
        now = self._clock()
        self._used[owner] = (self._decayed(owner, now) + seconds, now)

    def _decayed(self, owner: str, now: datetime) -> float:
        seconds, since = self._used.get(owner, (0.0, now))
        return seconds * math.exp2(-(now - since).total_seconds() / FAIR_SHARE_HALF_LIFE_SECONDS)

    def _claim(self, job: Runnable) -> Claim:
        remaining = self._remaining_seconds(job) if isinstance(job, Train) else None
        return Claim(
            kind=job.kind,
            id=job.id,
            owner=job.owner,
            amount=amount_of(job),
            gpu_ids=job.gpu_ids,
            priority=job.priority,
            queued_at=job.queued_at,
            not_before=job.not_before,
            remaining_seconds=remaining,
        )


def amount_of(job: Runnable) -> Amount:
    """Return what a job asks for: the limits that it names, over all its tasks."""
    return Amount(
        slots=1 if isinstance(job, Train) else 0,
        gpus=job.gpus * job.tasks,
        cpus=(job.cpus or 0.0) * job.tasks,
        memory_bytes=(job.memory_bytes or 0) * job.tasks,
    )


def total(claims: Iterable[Claim]) -> Amount:
    """Return the sum of what claims hold."""
    amount = Amount()
    for claim in claims:
        amount += claim.amount
    return amount


def by_owner(claims: Iterable[Claim]) -> Mapping[str, Amount]:
    """Return the sums of what claims hold, by owner."""
    held: dict[str, Amount] = {}
    for claim in claims:
        held[claim.owner] = held.get(claim.owner, Amount()) + claim.amount
    return held


def _workspace_claim(server: Workspace) -> Claim:
    amount = Amount(gpus=server.gpus, cpus=server.cpus or 0.0, memory_bytes=server.memory_bytes or 0)
    return Claim(server.kind, server.id, server.owner, amount, server.gpu_ids)
