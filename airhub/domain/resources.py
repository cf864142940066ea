"""GPUs, CPUs and memory: who may have them, who waits, why, and until when. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from airhub.errors import FieldError

AGEING = timedelta(hours=1)
"""Waiting this long counts as one point of priority, so that nothing starves."""


@dataclass(frozen=True)
class Amount:
    """A quantity of each resource; CPUs and bytes that were not asked for count as none."""

    slots: int = 0
    gpus: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.slots + other.slots,
            self.gpus + other.gpus,
            self.cpus + other.cpus,
            self.memory_bytes + other.memory_bytes,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.slots - other.slots,
            self.gpus - other.gpus,
            self.cpus - other.cpus,
            self.memory_bytes - other.memory_bytes,
        )

    def lacking(self, wanted: Amount) -> list[str]:
        """Return the names of what ``wanted`` asks for and this does not hold."""
        return [
            name
            for name in ("slots", "gpus", "cpus", "memory_bytes")
            if getattr(wanted, name) > 0 and getattr(wanted, name) > getattr(self, name) + 1e-9
        ]


@dataclass(frozen=True)
class Capacity:
    """What there is."""

    slots: int
    cpus: float
    memory_bytes: int
    gpu_ids: tuple[str, ...] = ()

    @property
    def amount(self) -> Amount:
        return Amount(self.slots, len(self.gpu_ids), self.cpus, self.memory_bytes)


@dataclass(frozen=True)
class Bounds:
    """A quota: how much one user, or one user as member of a group, may hold at once; null is no bound."""

    running_trains: int | None = None
    gpus: int | None = None
    cpus: float | None = None
    memory_bytes: int | None = None

    def exceeded_by(self, held: Amount) -> list[str]:
        """Return the names of the bounds that ``held`` is over."""
        pairs = (("running_trains", held.slots), ("gpus", held.gpus), ("cpus", held.cpus))
        names = [name for name, value in pairs if getattr(self, name) is not None and value > getattr(self, name) + 1e-9]
        if self.memory_bytes is not None and held.memory_bytes > self.memory_bytes:
            names.append("memory_bytes")
        return names

    def loosest(self, other: Bounds) -> Bounds:
        """Return the wider of two quotas, bound by bound: a user has the best of all their groups'."""
        merged = {}
        for name in ("running_trains", "gpus", "cpus", "memory_bytes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            merged[name] = None if mine is None or theirs is None else max(mine, theirs)
        return Bounds(**merged)


@dataclass(frozen=True)
class Claim:
    """A job's wish for resources, or its hold on them."""

    kind: str
    id: int
    owner: str
    amount: Amount
    gpu_ids: tuple[str, ...] = ()
    priority: int = 0
    queued_at: datetime | None = None
    not_before: datetime | None = None
    remaining_seconds: float | None = None
    """Of a running one its ETA, of a queued one how long it is expected to run; null when not known."""


@dataclass(frozen=True)
class Grant:
    """The claim may start, with these devices."""

    claim: Claim
    gpu_ids: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """The claim waits: why, in a code and in words, how many are ahead, and when it is expected to start."""

    claim: Claim
    reason: str
    message: str
    ahead: int
    expected_start: datetime | None


@dataclass
class _Books:
    free: Amount
    gpu_ids: list[str]
    held: dict[str, Amount] = field(default_factory=dict)


def never_fits(amount: Amount, capacity: Capacity) -> list[FieldError]:
    """Say what in a request is more than there is at all; empty when it can run some day."""
    errors = []
    if amount.gpus > len(capacity.gpu_ids):
        have = f"it has {len(capacity.gpu_ids)}" if capacity.gpu_ids else "it has none"
        errors.append(FieldError("gpus", f"asks for {amount.gpus} GPUs, which this installation can never give: {have}"))
    if amount.cpus > capacity.cpus + 1e-9:
        errors.append(FieldError("cpus", f"asks for {amount.cpus:g} CPUs; there are {capacity.cpus:g}"))
    if amount.memory_bytes > capacity.memory_bytes:
        errors.append(
            FieldError("memory_bytes", f"asks for {amount.memory_bytes} bytes; there are {capacity.memory_bytes}")
        )
    return errors


def place(
    queue: Sequence[Claim],
    holding: Sequence[Claim],
    capacity: Capacity,
    quotas: Mapping[str, Bounds],
    used_seconds: Mapping[str, float],
    now: datetime,
) -> tuple[list[Grant], list[Wait]]:
    """Decide who of ``queue`` starts now and tell the others why they wait.

    Order: priority (an hour of waiting counts as one point), then who holds and has used least (``used_seconds``
    by owner), then age. A claim that waits for capacity keeps what it needs from those behind it, so that small jobs do
    not starve a large one; one that waits for its owner's quota or its restart delay keeps nothing.
    """
    books = _Books(capacity.amount, [device for device in capacity.gpu_ids if not _taken(device, holding)])
    for claim in holding:
        books.free -= claim.amount
        books.held[claim.owner] = books.held.get(claim.owner, Amount()) + claim.amount
    running = {owner: amount.slots for owner, amount in books.held.items()}
    used = dict(used_seconds)
    waiting = sorted(queue, key=lambda claim: _rank(claim, running, used, now), reverse=True)
    grants: list[Grant] = []
    blocked: list[tuple[Claim, str, str]] = []
    while waiting:
        claim = waiting.pop()
        verdict = _judge(claim, books, capacity, quotas.get(claim.owner, Bounds()), now)
        if verdict is not None:
            blocked.append((claim, *verdict))
            if verdict[0] == "capacity":
                books.free -= claim.amount
            continue
        devices = tuple(books.gpu_ids[: claim.amount.gpus])
        del books.gpu_ids[: claim.amount.gpus]
        books.free -= claim.amount
        books.held[claim.owner] = books.held.get(claim.owner, Amount()) + claim.amount
        running[claim.owner] = running.get(claim.owner, 0) + 1
        used[claim.owner] = used.get(claim.owner, 0.0) + 1.0
        waiting.sort(key=lambda claim: _rank(claim, running, used, now), reverse=True)
        grants.append(Grant(claim, devices))
    held_now = [*holding, *(replace(grant.claim, gpu_ids=grant.gpu_ids) for grant in grants)]
    starts = _expected_starts([claim for claim, reason, _ in blocked if reason == "capacity"], held_now, capacity, now)
    waits = []
    for ahead, (claim, reason, message) in enumerate(blocked):
        expected = claim.not_before if reason == "restart_delay" else starts.get((claim.kind, claim.id))
        waits.append(Wait(claim, reason, message, ahead, expected))
    return grants, waits


def _rank(claim: Claim, running: Mapping[str, int], used: Mapping[str, float], now: datetime) -> tuple[float, ...]:
    queued_at = claim.queued_at or now
    points = claim.priority + (now - queued_at) // AGEING
    return (
        -points,
        running.get(claim.owner, 0),
        round(used.get(claim.owner, 0.0), 3),
        queued_at.timestamp(),
        claim.id,
    )


def _judge(
    claim: Claim, books: _Books, capacity: Capacity, bounds: Bounds, now: datetime
) -> tuple[str, str] | None:
    if claim.not_before is not None and claim.not_before > now:
        return "restart_delay", "Waits a moment before it starts again."
    over = bounds.exceeded_by(books.held.get(claim.owner, Amount()) + claim.amount)
    if over:
        names = ", ".join(_WORDS[name] for name in over)
        return "quota", f"Waits because {claim.owner}'s quota of {names} is used up; it starts when one of their jobs ends."
    lacking = books.free.lacking(claim.amount)
    if claim.amount.gpus > len(books.gpu_ids) and "gpus" not in lacking:
        lacking.append("gpus")
    if not lacking:
        return None
    if "gpus" in lacking:
        free, total = len(books.gpu_ids), len(capacity.gpu_ids)
        return "capacity", f"Waits for {claim.amount.gpus} of {total} GPUs; {free} are free."
    if "slots" in lacking:
        return "capacity", f"Waits for its turn: {capacity.slots} jobs may run at once, and as many do."
    words = " and ".join(_WORDS[name] for name in lacking)
    return "capacity", f"Waits for {words} that others are using."


_WORDS = {
    "slots": "a free place",
    "running_trains": "running jobs",
    "gpus": "GPUs",
    "cpus": "CPUs",
    "memory_bytes": "memory",
}


def _taken(device: str, holding: Sequence[Claim]) -> bool:
    return any(device in claim.gpu_ids for claim in holding)


def _expected_starts(
    blocked: Sequence[Claim], holding: Sequence[Claim], capacity: Capacity, now: datetime
) -> dict[tuple[str, int], datetime]:
    """Play the queue forward on what is known of durations; who depends on an unknown one gets no answer."""
    free = capacity.amount
    ends: list[tuple[float, int, Amount]] = []
    for order, claim in enumerate(holding):
        free -= claim.amount
        if claim.remaining_seconds is not None:
            heapq.heappush(ends, (claim.remaining_seconds, order, claim.amount))
    starts = {}
    clock = 0.0
    for order, claim in enumerate(blocked, start=len(holding)):
        while free.lacking(claim.amount) and ends:
            clock, _, released = heapq.heappop(ends)
            free += released
        if free.lacking(claim.amount):
            break
        starts[(claim.kind, claim.id)] = now + timedelta(seconds=clock)
        free -= claim.amount
        if claim.remaining_seconds is not None:
            heapq.heappush(ends, (clock + claim.remaining_seconds, order, claim.amount))
    return starts
