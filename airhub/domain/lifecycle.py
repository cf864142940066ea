"""The life of whatever AirHub runs, as one literal table; the reconciler alone steps through it.

Users change a job's ``target``; what then happens is an ``Event``, and ``step`` says which changes of the record
and which actions follow. A pair of status and event that has no row raises ``InvalidTransition``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from airhub.domain.workload import Observation, Phase
from airhub.errors import InvalidTransition


class Status(enum.StrEnum):
    """How far a job really is; written by the reconciler alone."""

    CREATED = "created"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    SUSPENDED = "suspended"
    IDLE = "idle"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class Target(enum.StrEnum):
    """What the owner wants; written by use cases alone (and cleared by the end of a job)."""

    NONE = "none"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    IDLE = "idle"
    DELETED = "deleted"


class Event(enum.StrEnum):
    """What can happen to a job."""

    WANT_RUN = "want_run"
    WANT_PAUSE = "want_pause"
    WANT_SUSPEND = "want_suspend"
    WANT_STOP = "want_stop"
    WANT_IDLE = "want_idle"
    GRANTED = "granted"
    LAUNCH_FAILED = "launch_failed"
    SEEN_RUNNING = "seen_running"
    SEEN_FROZEN = "seen_frozen"
    SEEN_EXITED = "seen_exited"
    SEEN_ABSENT = "seen_absent"
    DEADLINE = "deadline"


class Action(enum.StrEnum):
    """What the reconciler does to the runtime after a step."""

    LAUNCH = "launch"
    FREEZE = "freeze"
    THAW = "thaw"
    TERMINATE = "terminate"
    REMOVE = "remove"
    SCHEDULE = "schedule"


FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.STOPPED})
RESTING = FINAL | {Status.CREATED, Status.SUSPENDED, Status.IDLE}
"""Nothing runs and nothing is about to, unless the target changes."""
HOLDING = frozenset({Status.STARTING, Status.RUNNING, Status.PAUSED, Status.STOPPING})
"""Resources are taken."""

MACHINE_FAULTS = frozenset({"killed", "engine_lost", "node_lost"})
"""Reasons that are not the code's doing: they use up ``max_restarts``."""

RESTART_DELAYS_SECONDS = (1, 5, 15, 60, 300)
"""Back-off before a restart after a machine's fault; the last one repeats."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. ``reason`` is null only for success."""

    reason: str | None
    message: str | None = None
    exit_code: int | None = None

    @property
    def machine_fault(self) -> bool:
        return self.reason in MACHINE_FAULTS


class Job(Protocol):
    """What ``step`` needs to know of a record."""

    @property
    def kind(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def target(self) -> Target: ...
    @property
    def attempt(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def max_restarts(self) -> int: ...
    @property
    def stop_reason(self) -> str | None: ...


@dataclass(frozen=True)
class Step:
    """What follows from an event: the record's changes, then actions, in order."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    actions: tuple[Action, ...] = ()


S, E, A, T = Status, Event, Action, Target

TABLE: Mapping[tuple[Status, Event], str] = {
    # Asked to run: a new attempt from every state of rest, else go on with what there is.
    (S.CREATED, E.WANT_RUN): "queue",
    (S.SUSPENDED, E.WANT_RUN): "queue",
    (S.IDLE, E.WANT_RUN): "queue",
    (S.SUCCEEDED, E.WANT_RUN): "queue",
    (S.FAILED, E.WANT_RUN): "queue",
    (S.STOPPED, E.WANT_RUN): "queue",
    (S.QUEUED, E.WANT_RUN): "schedule",
    (S.PAUSED, E.WANT_RUN): "thaw",
    # The scheduler gave it its resources.
    (S.QUEUED, E.GRANTED): "start",
    (S.STARTING, E.SEEN_ABSENT): "launch",
    (S.STARTING, E.SEEN_RUNNING): "run",
    (S.STARTING, E.SEEN_FROZEN): "rest_frozen",
    (S.STARTING, E.SEEN_EXITED): "finish",
    (S.STARTING, E.LAUNCH_FAILED): "finish",
    (S.STARTING, E.WANT_SUSPEND): "terminate",
    (S.STARTING, E.WANT_STOP): "terminate",
    (S.STARTING, E.WANT_IDLE): "terminate",
    (S.STARTING, E.DEADLINE): "overrun",
    # Running.
    (S.RUNNING, E.SEEN_RUNNING): "nothing",
    (S.RUNNING, E.SEEN_FROZEN): "rest_frozen",
    (S.RUNNING, E.SEEN_EXITED): "finish",
    (S.RUNNING, E.SEEN_ABSENT): "lose",
    (S.RUNNING, E.WANT_PAUSE): "freeze",
    (S.RUNNING, E.WANT_SUSPEND): "terminate",
    (S.RUNNING, E.WANT_STOP): "terminate",
    (S.RUNNING, E.WANT_IDLE): "terminate",
    (S.RUNNING, E.DEADLINE): "overrun",
    # Frozen.
    (S.PAUSED, E.SEEN_FROZEN): "nothing",
    (S.PAUSED, E.SEEN_RUNNING): "run",
    (S.PAUSED, E.SEEN_EXITED): "finish",
    (S.PAUSED, E.SEEN_ABSENT): "lose",
    (S.PAUSED, E.WANT_PAUSE): "nothing",
    (S.PAUSED, E.WANT_SUSPEND): "terminate",
    (S.PAUSED, E.WANT_STOP): "terminate",
    (S.PAUSED, E.WANT_IDLE): "terminate",
    (S.PAUSED, E.DEADLINE): "overrun",
    # On its way out.
    (S.STOPPING, E.SEEN_RUNNING): "insist",
    (S.STOPPING, E.SEEN_FROZEN): "insist",
    (S.STOPPING, E.SEEN_EXITED): "rest",
    (S.STOPPING, E.SEEN_ABSENT): "rest",
    (S.STOPPING, E.DEADLINE): "nothing",
    # Waiting or at rest: the owner's word is enough.
    (S.QUEUED, E.WANT_STOP): "rest",
    (S.QUEUED, E.WANT_SUSPEND): "rest",
    (S.QUEUED, E.WANT_IDLE): "rest",
    (S.QUEUED, E.LAUNCH_FAILED): "finish",
    (S.SUSPENDED, E.WANT_STOP): "rest",
    (S.SUSPENDED, E.WANT_SUSPEND): "nothing",
    (S.IDLE, E.WANT_STOP): "rest",
    (S.IDLE, E.WANT_IDLE): "nothing",
    (S.CREATED, E.WANT_STOP): "nothing",
    (S.SUCCEEDED, E.WANT_STOP): "nothing",
    (S.FAILED, E.WANT_STOP): "nothing",
    (S.STOPPED, E.WANT_STOP): "nothing",
    # A container that should not be there any more.
    (S.QUEUED, E.SEEN_ABSENT): "nothing",
    (S.CREATED, E.SEEN_ABSENT): "nothing",
    (S.SUSPENDED, E.SEEN_ABSENT): "nothing",
    (S.IDLE, E.SEEN_ABSENT): "nothing",
    (S.SUCCEEDED, E.SEEN_ABSENT): "nothing",
    (S.FAILED, E.SEEN_ABSENT): "nothing",
    (S.STOPPED, E.SEEN_ABSENT): "nothing",
    **{
        (status, seen): "clear"
        for status in (S.CREATED, S.SUSPENDED, S.IDLE, S.SUCCEEDED, S.FAILED, S.STOPPED)
        for seen in (E.SEEN_RUNNING, E.SEEN_FROZEN, E.SEEN_EXITED)
    },
}

_REST_AFTER: Mapping[Target, Status] = {
    T.SUSPENDED: S.SUSPENDED,
    T.IDLE: S.IDLE,
    T.STOPPED: S.STOPPED,
    T.DELETED: S.STOPPED,
}


def step(job: Job, event: Event, now: datetime, outcome: Outcome | None = None) -> Step:
    """Return what follows when ``event`` happens to ``job``.

    ``outcome`` says how the attempt ended, for ``SEEN_EXITED`` and ``LAUNCH_FAILED``. Raises ``InvalidTransition``
    when the table has no row.
    """
    row = TABLE.get((job.status, event))
    if row is None:
        raise InvalidTransition(
            f"{job.kind} {job.id} is {job.status} (wanted: {job.target}, attempt {job.attempt}): {event} makes no sense"
        )
    return _ROWS[row](job, now, outcome)


def perceive(job: Job, seen: Observation | None) -> Event | None:
    """Name the event that lies between what is wanted, what is recorded and what the runtime sees.

    ``seen`` is null for a job of which nothing can run. Null is returned when all is as it should be.
    """
    if job.status in HOLDING:
        assert seen is not None, "a job that holds resources is always observed"
        sight = _SIGHTS[seen.phase]
        if job.status is S.STOPPING:
            return sight if seen.all_gone or sight is not E.SEEN_EXITED else E.SEEN_RUNNING
        if sight in (E.SEEN_EXITED, E.SEEN_ABSENT):
            return sight
        wanted = _want(job)
        if wanted is E.WANT_PAUSE and job.status is S.STARTING:
            return sight
        if wanted is E.WANT_PAUSE and sight is E.SEEN_FROZEN or wanted is E.WANT_RUN and job.status is not S.PAUSED:
            wanted = None
        if wanted is not None and not (wanted is E.WANT_RUN and sight is E.SEEN_RUNNING):
            return wanted
        steady = {S.RUNNING: E.SEEN_RUNNING, S.PAUSED: E.SEEN_FROZEN}.get(job.status)
        return None if sight is steady else sight
    wanted = _want(job)
    if wanted is None or (job.status in FINAL | {S.CREATED} and wanted is not E.WANT_RUN):
        return None
    if (job.status, wanted) in ((S.SUSPENDED, E.WANT_SUSPEND), (S.IDLE, E.WANT_IDLE)):
        return None
    return wanted


def public_state(status: Status, target: Target) -> str:
    """Return the state that clients see: where the job is, or where it is going."""
    if status in (S.STARTING, S.RUNNING, S.PAUSED) and target in (T.STOPPED, T.SUSPENDED, T.DELETED, T.IDLE):
        return S.STOPPING
    if status is S.PAUSED and target is T.RUNNING:
        return S.STARTING
    if status in FINAL | {S.CREATED, S.SUSPENDED, S.IDLE} and target is T.RUNNING:
        return S.QUEUED
    return status


def _want(job: Job) -> Event | None:
    return {
        T.RUNNING: E.WANT_RUN,
        T.PAUSED: E.WANT_PAUSE,
        T.SUSPENDED: E.WANT_SUSPEND,
        T.STOPPED: E.WANT_STOP,
        T.DELETED: E.WANT_STOP,
        T.IDLE: E.WANT_IDLE,
        T.NONE: None,
    }[job.target]


_SIGHTS = {
    Phase.ABSENT: E.SEEN_ABSENT,
    Phase.CREATED: E.SEEN_ABSENT,
    Phase.RUNNING: E.SEEN_RUNNING,
    Phase.FROZEN: E.SEEN_FROZEN,
    Phase.EXITED: E.SEEN_EXITED,
}


def _queue(job: Job, now: datetime, outcome: Outcome | None) -> Step:
    changes = {
        "status": S.QUEUED,
        "attempt": job.attempt + 1,
        "restarts": 0,
        "queued_at": now,
        "not_before": None,
        "started_at": None,
        "finished_at": None,
        "exit_code": None,
        "reason": None,
        "message": None,
        "stop_reason": None,
        "gpu_ids": [],
    }
    return Step(changes, (A.SCHEDULE,))


def _start(job: Job, now: datetime, outcome: Outcome | None) -> Step:
    return Step({"status": S.STARTING, "reason": None, "message": None}, (A.LAUNCH,))


def _run(job: Job, now: datetime, outcome: Outcome | None) -> Step:
    return Step({"status": S.RUNNING, "reason": None, "message": None})


def _finish(job: Job, now: datetime, outcome: Outcome | None) -> Step:
    assert outcome is not None, "an end has an outcome"
    if job.target in _REST_AFTER:
        return _rest(job, now, outcome)
    if outcome.machine_fault and job.restarts < job.max_restarts:
        delay = RESTART_DELAYS_SECONDS[min(job.restarts, len(RESTART_DELAYS_SECONDS) - 1)]
        changes = {
            "status": S.QUEUED,
            "target": T.RUNNING,
            "attempt": job.attempt + 1,
            "restarts": job.restarts + 1,
            "queued_at": now,
            "not_before": now + timedelta(seconds=delay),
            "gpu_ids": [],
            "reason": outcome.reason,
            "message": f"{outcome.message} Restart {job.restarts + 1} of {job.max_restarts} in {delay} s.",
        }
        return Step(changes, (A.REMOVE, A.SCHEDULE))
    changes = {
        "status": S.SUCCEEDED if outcome.reason is None else S.FAILED,
        "target": T.NONE,
        "finished_at": now,
        "exit_code": outcome.exit_code,
        "reason": outcome.reason,
        "message": outcome.message,
        "gpu_ids": [],
    }
    return Step(changes, (A.REMOVE, A.SCHEDULE))


def _lose(job: Job, now: datetime, outcome: Outcome | None) -> Step:
    lost = Outcome("engine_lost", "The engine no longer knows the container: it was removed from outside or lost.")
    return _finish(job, now, lost)


def _rest(job: Job, now: datetime, outcome: Outcome | None) -> Step:
    """Come to rest as was wanted, or fail for the reason for which AirHub itself stopped the job."""
    exit_code = outcome.exit_code if outcome else None
    changes: dict[str, Any] = {"finished_at": now, "exit_code": exit_code, "gpu_ids": [], "stop_reason": None}
    if job.stop_reason is not None and job.target is not T.DELETED:
        changes |= {"status": S.FAILED, "target": T.NONE, "reason": job.stop_reason}
        changes["message"] = STOP_MESSAGES.get(job.stop_reason)
        return Step(changes, (A.REMOVE, A.SCHEDULE))
    status = _REST_AFTER.get(job.target)
    if status is None:
        # Wanted to run again while it was on its way out: a new attempt follows.
        queued = _queue(job, now, None)
        return Step(queued.changes, (A.REMOVE, A.SCHEDULE))
    changes |= {"status": status, "message": None}
    changes["reason"] = "stopped_by_user" if status is S.STOPPED else None
    if job.target is not T.DELETED:
        changes["target"] = T.NONE
    return Step(changes, (A.REMOVE, A.SCHEDULE))


STOP_MESSAGES = {
    "deadline": "The job ran longer than its deadline_seconds allow. Raise the deadline, or start it again to go on "
    "from the newest checkpoint."
}

_ROWS = {
    "nothing": lambda job, now, outcome: Step(),
    "schedule": lambda job, now, outcome: Step({}, (A.SCHEDULE,)),
    "queue": _queue,
    "start": _start,
    "launch": lambda job, now, outcome: Step({}, (A.LAUNCH,)),
    "run": _run,
    "freeze": lambda job, now, outcome: Step({}, (A.FREEZE,)),
    "thaw": lambda job, now, outcome: Step({}, (A.THAW,)),
    "rest_frozen": lambda job, now, outcome: Step({"status": S.PAUSED}),
    "terminate": lambda job, now, outcome: Step({"status": S.STOPPING}, (A.TERMINATE,)),
    "overrun": lambda job, now, outcome: Step({"status": S.STOPPING, "stop_reason": "deadline"}, (A.TERMINATE,)),
    "insist": lambda job, now, outcome: Step({}, (A.TERMINATE,)),
    "finish": _finish,
    "lose": _lose,
    "rest": _rest,
    "clear": lambda job, now, outcome: Step({}, (A.REMOVE,)),
}
